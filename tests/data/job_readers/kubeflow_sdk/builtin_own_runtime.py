from kubeflow.trainer import BuiltinTrainer, TorchTuneConfig, TrainerClient

TrainerClient().train(
    runtime="our-torchtune", trainer=BuiltinTrainer(config=TorchTuneConfig(batch_size=4, resources_per_node={"gpu": 4}))
)
