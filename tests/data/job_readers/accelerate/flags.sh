accelerate launch --multi_gpu --num-processes=4 --mixed-precision=bf16 sft.py \
  --model-name-or-path=Qwen/Qwen2.5-3B --max-length=2048 --packing --per-device-train-batch-size=8 \
  --dataset-name=a/b --per-device-train-batch-size=4
