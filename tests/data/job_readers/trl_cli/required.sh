set -euo pipefail
if [[ -z "${DATA:-}" ]]; then
    echo "ERROR: DATA must be set to your dataset"
    exit 1
fi
OUT="${OUT:-}"
[ -n "$OUT" ] || { echo "OUT?"; exit 2; }
trl sft --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --max_length 2048 --dataset_name $DATA
