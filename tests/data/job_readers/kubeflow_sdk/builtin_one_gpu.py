from kubeflow.trainer import BuiltinTrainer, TorchTuneConfig, TrainerClient

TrainerClient().train(
    runtime="torchtune-llama3.2-1b", trainer=BuiltinTrainer(config=TorchTuneConfig(resources_per_node={"gpu": 1}))
)
