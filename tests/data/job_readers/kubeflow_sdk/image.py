from kubeflow.trainer import CustomTrainerContainer, TrainerClient

TrainerClient().train(
    runtime="torch-distributed",
    trainer=CustomTrainerContainer(image="registry/trl:1", num_nodes=1, resources_per_node={"nvidia.com/gpu": 4}),
)
