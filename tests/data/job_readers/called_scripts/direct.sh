#!/bin/bash
set -a
MODEL=Qwen/Qwen2.5-7B
./train.sh 1024 8
