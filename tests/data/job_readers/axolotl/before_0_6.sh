export CUDA_VISIBLE_DEVICES="0,1"
python -m axolotl.cli.preprocess qlora.yml
accelerate launch scripts/finetune.py qlora.yml --deepspeed ds/own.json
