deepspeed main.py \
   --model_name_or_path meta-llama/Llama-2-7b-hf \
   --per_device_train_batch_size 4 \
   --gradient_accumulation_steps 1  \
   --zero_stage 3 \
   --deepspeed --bf16 True \
   --output_dir ./output &> ./output/training.log
