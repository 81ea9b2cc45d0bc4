#BSUB -P MAT123
#BSUB -nnodes 2
#BSUB -gpu "num=4"
NODES=2
jsrun -n $NODES -r 1 -g 4 -c 32 accelerate launch --num_machines $NODES --num_processes 8 --use_fsdp --fsdp_version 1 \
  -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-14B --max_length 2048 --per_device_train_batch_size 1 --dtype bfloat16
