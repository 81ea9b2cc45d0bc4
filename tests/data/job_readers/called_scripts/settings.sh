MODEL=Qwen/Qwen2.5-14B
BATCH=2
ARGS=(--max_length 4096 --packing)
launch() {
  accelerate launch --num_processes "$1" -m trl.scripts.sft --model_name_or_path "$MODEL" --dataset_name a/b \
    --per_device_train_batch_size $BATCH "${ARGS[@]}" "${@:2}"
}
