MODEL=Qwen/Qwen2.5-3B
bash train.sh 4096 2
