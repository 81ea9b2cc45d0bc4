NPROC_PER_NODE=8 \
CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \
swift sft \
    --model Qwen/Qwen2.5-14B \
    --tuner_type full \
    --torch_dtype bfloat16 \
    --dataset data/sft.jsonl \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps $(expr 16 / 8) \
    --packing true \
    --max_length 8192 \
    --attn_impl flash_attn \
    --use_liger_kernel true \
    --save_only_model true \
    --deepspeed zero3_offload
