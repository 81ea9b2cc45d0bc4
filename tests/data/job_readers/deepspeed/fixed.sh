#!/bin/sh
deepspeed --num_gpus=8 train.py --deepspeed --deepspeed_config ds/fixed.json --model_name_or_path Qwen/Qwen2.5-7B
