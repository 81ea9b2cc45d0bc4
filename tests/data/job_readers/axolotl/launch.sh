accelerate launch --num_processes 4 -m axolotl.cli.train qlora.yml --sequence-len 8192
