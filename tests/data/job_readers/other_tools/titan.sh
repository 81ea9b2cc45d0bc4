NGPU=${NGPU:-"8"}
CONFIG_FILE=${CONFIG_FILE:-"./train_configs/llama3_8b.toml"}
PYTORCH_ALLOC_CONF="expandable_segments:True" torchrun --nproc_per_node=${NGPU} --rdzv_backend c10d --local-ranks-filter 0 -m torchtitan.train --job.config_file ${CONFIG_FILE}
