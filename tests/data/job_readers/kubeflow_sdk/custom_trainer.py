from kubeflow.trainer import CustomTrainer, TrainerClient


def finetune(model_name, batch):
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir="/out", per_device_train_batch_size=batch, max_length=4096, bf16=True)
    trainer = SFTTrainer(
        model=model_name,
        args=args,
        train_dataset=load_dataset("trl-lib/Capybara", split="train"),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.train()


client = TrainerClient()
job = client.train(
    runtime=client.get_runtime("torch-distributed"),
    trainer=CustomTrainer(
        func=finetune,
        func_args={"model_name": "Qwen/Qwen2.5-7B", "batch": 4},
        num_nodes=2,
        resources_per_node={"cpu": 8, "memory": "64Gi", "gpu": 4},
    ),
)
client.wait_for_job_status(job)
