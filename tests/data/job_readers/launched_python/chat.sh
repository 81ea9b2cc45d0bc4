OUTPUT=$1
ZERO_STAGE=$2
if [ "$OUTPUT" == "" ]; then
    OUTPUT=./output
fi
if [ "$ZERO_STAGE" == "" ]; then
    ZERO_STAGE=3
fi
deepspeed main.py \
   --model_name_or_path facebook/opt-1.3b \
   --per_device_train_batch_size 8 \
   --max_seq_len 512 \
   --gradient_accumulation_steps 8 \
   --zero_stage $ZERO_STAGE \
   --deepspeed \
   --output_dir $OUTPUT
