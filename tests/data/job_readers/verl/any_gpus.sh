nproc_per_node=$1
save_path=$2
shift 2
torchrun --standalone --nnodes=1 --nproc_per_node=$nproc_per_node -m verl.trainer.fsdp_sft_trainer \
    data.max_length=1300 data.micro_batch_size_per_gpu=8 model.partial_pretrain=meta-llama/Llama-3.2-3B-Instruct \
    trainer.default_local_dir=$save_path
