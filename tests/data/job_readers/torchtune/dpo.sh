tune run --nproc_per_node 2 lora_dpo_distributed --config lora_8b.yaml
