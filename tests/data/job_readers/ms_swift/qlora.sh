CUDA_VISIBLE_DEVICES=0 swift sft \
    --model Qwen/Qwen3-8B --quant_method bnb --quant_bits 4 \
    --bnb_4bit_compute_dtype bfloat16 --bnb_4bit_quant_type nf4 --bnb_4bit_use_double_quant true \
    --tuner_type lora --max_length 2048 --gradient_accumulation_steps 16 --dataset x
