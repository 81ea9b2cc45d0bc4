bash $1/train.sh
