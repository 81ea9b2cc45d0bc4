torchrun --standalone --nnodes=1 --nproc_per_node=8 \
    -m verl.trainer.sft_trainer \
    data.train_files=$HOME/data/gsm8k/train.parquet \
    model.path=Qwen/Qwen2.5-0.5B-Instruct engine=fsdp
