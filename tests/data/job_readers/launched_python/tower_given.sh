torchrun --nproc_per_node 4 vlm/train_it.py --model_name_or_path lmsys/vicuna-7b-v1.5 --vision_tower google/siglip-base-patch16-224 \
    --mm_hidden_layers 2 --bf16 True --per_device_train_batch_size 4 --model_max_length 1024 --gradient_checkpointing True
