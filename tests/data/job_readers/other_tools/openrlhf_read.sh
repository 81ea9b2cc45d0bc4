set -x
read -r -d '' training_commands <<EOF
openrlhf.cli.train_sft \
   --max_len 2048 \
   --pretrain meta-llama/Meta-Llama-3-8B \
   --zero_stage 2
EOF
if [[ ${1} != "slurm" ]]; then
    deepspeed --module $training_commands
fi
