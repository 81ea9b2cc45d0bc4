. ./settings.sh
BATCH=1
accelerate launch --num_processes 8 -m trl.scripts.sft --model_name_or_path "$MODEL" --per_device_train_batch_size $BATCH "${ARGS[@]}"
