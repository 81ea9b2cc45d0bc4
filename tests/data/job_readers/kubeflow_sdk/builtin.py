from kubeflow.trainer import (
    BuiltinTrainer,
    DataType,
    HuggingFaceDatasetInitializer,
    HuggingFaceModelInitializer,
    Initializer,
    LoraConfig,
    TorchTuneConfig,
    TrainerClient,
)

client = TrainerClient()
client.train(
    runtime=client.get_runtime("torchtune-llama3.2-3b"),
    initializer=Initializer(
        dataset=HuggingFaceDatasetInitializer(storage_uri="hf://tatsu-lab/alpaca/data"),
        model=HuggingFaceModelInitializer(storage_uri="hf://meta-llama/Llama-3.2-3B-Instruct"),
    ),
    trainer=BuiltinTrainer(
        config=TorchTuneConfig(
            dtype=DataType.BF16,
            batch_size=8,
            peft_config=LoraConfig(
                lora_attn_modules=["q_proj", "k_proj", "v_proj", "output_proj"],
                apply_lora_to_mlp=True,
                lora_rank=16,
                quantize_base=True,
            ),
            resources_per_node={"gpu": 1},
        )
    ),
)
