torchrun --nnodes 2 --nproc_per_node 8 --rdzv_id "$JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$HEAD:29500" -m axolotl.cli.train full_zero3.yml
