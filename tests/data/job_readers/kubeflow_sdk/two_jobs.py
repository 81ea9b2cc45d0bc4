from kubeflow.trainer import CustomTrainer, TrainerClient

client = TrainerClient()
client.train(trainer=CustomTrainer(func=print, num_nodes=1, resources_per_node={"gpu": 1}))
client.train(trainer=CustomTrainer(func=print, num_nodes=2, resources_per_node={"gpu": 1}))
