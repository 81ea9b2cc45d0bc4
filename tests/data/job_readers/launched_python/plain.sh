#!/bin/bash
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
srun accelerate launch --use_fsdp --fsdp_version 2 --num_machines 2 --num_processes 8 plain.py
