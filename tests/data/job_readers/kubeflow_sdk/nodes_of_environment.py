import os

from kubeflow.trainer import CustomTrainer, TrainerClient


def train():
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(max_length=1024, per_device_train_batch_size=2, model_init_kwargs={"dtype": "bfloat16"})
    SFTTrainer(model="Qwen/Qwen3-4B", args=args, train_dataset=None).train()


TrainerClient().train(
    trainer=CustomTrainer(func=train, num_nodes=int(os.environ["NODES"]), resources_per_node={"gpu": 8})
)
