from kubeflow.training import TrainingClient


def main(parameters):
    from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser

    training_args, model_args = TrlParser((SFTConfig, ModelConfig)).parse_dict(parameters)
    SFTTrainer(model=model_args.model_name_or_path, args=training_args).train()


parameters = {
    "model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "dtype": "bfloat16",
    "use_peft": True,
    "lora_r": 16,
    "lora_target_modules": ["q_proj", "v_proj"],
    "max_length": 1024,
    "per_device_train_batch_size": 32,
    "gradient_checkpointing": False,
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"activation_checkpointing": True},
}
TrainingClient().create_job(
    job_kind="PyTorchJob",
    name="sft",
    train_func=main,
    parameters=parameters,
    num_workers=8,
    num_procs_per_worker="auto",
    resources_per_worker={"nvidia.com/gpu": 1, "cpu": 4},
)
