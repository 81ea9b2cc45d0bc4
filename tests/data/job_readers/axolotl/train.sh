#!/bin/bash
export WANDB_PROJECT=axolotl
axolotl train qlora.yml --micro-batch-size 1 --gradient_accumulation_steps=16 --launcher accelerate
