#!/bin/bash
qsub -l select=1:ngpus=4 <<'SCRIPT'
#!/bin/bash
accelerate launch --num_processes 4 -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-3B --max_length 2048 \
  --per_device_train_batch_size 4 --packing
SCRIPT
