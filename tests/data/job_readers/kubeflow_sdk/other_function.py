from kubeflow.trainer import TrainerClient, CustomTrainer

import jobs

def other_fn(lr=1e-5):
    from trl import SFTConfig, SFTTrainer
    args = SFTConfig(output_dir="/tmp/o", max_length=4096, per_device_train_batch_size=2, gradient_accumulation_steps=8, bf16=True)
    SFTTrainer(model="Qwen/Qwen2.5-7B", args=args, train_dataset=None).train()

TrainerClient().train(trainer=CustomTrainer(func=jobs.train_fn, num_nodes=2, resources_per_node={"gpu": 4, "cpu": 8}, packages_to_install=["trl"]))
