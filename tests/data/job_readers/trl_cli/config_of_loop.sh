for LOSS in short long; do
    accelerate launch --num_processes 8 --mixed_precision bf16 scripts/run_dpo.py recipes/qwen-${LOSS}.yaml
done
