torchrun --nproc_per_node=8 main_finetune.py --output_dir out --epochs 3 --warmup_epochs 0.04 --max_words 512 --lr 2e-5 \
  --weight_decay 0.0 --save_folder out --checkpointing --llama_type llama
