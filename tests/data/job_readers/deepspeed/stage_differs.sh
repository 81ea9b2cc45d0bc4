accelerate launch --config_file accelerate_inline.yaml examples/scripts/sft.py --model_name_or_path Qwen/Qwen2.5-7B \
  --dataset_name d --deepspeed ds/z2.json
