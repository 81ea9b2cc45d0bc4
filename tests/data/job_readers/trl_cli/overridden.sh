#!/bin/bash
# options come before the config, the last of a name counts
trl sft --config lora.yaml --max_length=2048 --per_device_train_batch_size 4 --per_device_train_batch_size 1
