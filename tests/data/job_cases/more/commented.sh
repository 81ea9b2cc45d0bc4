#!/bin/bash
#  --option_1 value   # of an older run   
#  --option_2 value   # of an older run   
#  --option_3 value   # of an older run   
#  --option_4 value   # of an older run   
#  --option_5 value   # of an older run   
#  --option_6 value   # of an older run   
#  --option_7 value   # of an older run   
#  --option_8 value   # of an older run   
#  --option_9 value   # of an older run   
#  --option_10 value   # of an older run   
#  --option_11 value   # of an older run   
#  --option_12 value   # of an older run   
#  --option_13 value   # of an older run   
#  --option_14 value   # of an older run   
#  --option_15 value   # of an older run   
#  --option_16 value   # of an older run   
#  --option_17 value   # of an older run   
#  --option_18 value   # of an older run   
#  --option_19 value   # of an older run   
#  --option_20 value   # of an older run   
#  --option_21 value   # of an older run   
#  --option_22 value   # of an older run   
#  --option_23 value   # of an older run   
#  --option_24 value   # of an older run   
#  --option_25 value   # of an older run   
#  --option_26 value   # of an older run   
#  --option_27 value   # of an older run   
#  --option_28 value   # of an older run   
#  --option_29 value   # of an older run   
#  --option_30 value   # of an older run   
source env.sh
trl sft --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 --max_length 2048 --use_peft
