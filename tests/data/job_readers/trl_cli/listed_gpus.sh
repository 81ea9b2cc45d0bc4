export CUDA_VISIBLE_DEVICES=0,1,2,3
NUM_GPUS=$(echo $CUDA_VISIBLE_DEVICES | tr ',' '\n' | wc -l)
ALSO=$(echo ${CUDA_VISIBLE_DEVICES} | awk -F',' '{print NF}')
TOTAL=64
PER_DEVICE=2
torchrun --nproc_per_node $NUM_GPUS -m trl.scripts.sft --model_name_or_path Qwen/Qwen2.5-7B --dataset_name trl-lib/Capybara \
  --per_device_train_batch_size $PER_DEVICE --gradient_accumulation_steps $(($TOTAL/$ALSO/$PER_DEVICE)) --max_length 2048
