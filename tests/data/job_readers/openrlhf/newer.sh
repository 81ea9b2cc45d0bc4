deepspeed --num_gpus 8 --module openrlhf.cli.train_sft \
   --data.max_len 4096 --data.dataset my/data --train.batch_size 128 --train.micro_batch_size 1 \
   --model.model_name_or_path Qwen/Qwen2.5-7B --ckpt.output_dir out --ds.zero_stage 3 --ds.adam_offload \
   --ds.param_dtype bf16 --ds.attn_implementation flash_attention_2 --adam.lr 5e-6 --model.gradient_checkpointing_enable
