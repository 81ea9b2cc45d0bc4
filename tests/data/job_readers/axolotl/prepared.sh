CUDA_VISIBLE_DEVICES="" axolotl preprocess qlora.yml
axolotl train qlora.yml
axolotl inference qlora.yml --lora-model-dir=./outputs/lora-out
