MODEL=Qwen/Qwen2.5-3B LENGTH=512 bash -x train.sh 4096 2
