torchrun --nproc_per_node 8 epochs.py --batch_size 2 --epochs 3
