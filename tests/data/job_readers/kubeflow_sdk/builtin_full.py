from kubeflow.trainer import *

client = TrainerClient()
client.train(
    runtime="torchtune-qwen2.5-1.5b",
    trainer=BuiltinTrainer(config=TorchTuneConfig(num_nodes=1, resources_per_node={"gpu": 2, "memory": "128G"})),
)
