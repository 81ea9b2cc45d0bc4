export MODEL=Qwen/Qwen2.5-7B
bash ../other/train.sh 1024 8
