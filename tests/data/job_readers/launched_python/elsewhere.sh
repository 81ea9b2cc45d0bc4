DIR=/home/$(whoami)/code
srun python $DIR/loop.py --batch_size 8 --model_name_or_path Qwen/Qwen2.5-7B
