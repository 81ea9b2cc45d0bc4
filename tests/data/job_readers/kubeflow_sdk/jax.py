from kubeflow.trainer import CustomTrainer, TrainerClient


def train():
    import jax


TrainerClient().train(runtime="jax-distributed", trainer=CustomTrainer(func=train, num_nodes=2))
