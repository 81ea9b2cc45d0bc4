from kubeflow.trainer import CustomTrainer, TrainerClient


def train():
    import torch

    torch.distributed.init_process_group("nccl")


TrainerClient().train(trainer=CustomTrainer(func=train, num_nodes=2, resources_per_node={"gpu": 8}))
