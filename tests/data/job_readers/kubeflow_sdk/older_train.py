import transformers
from kubeflow.storage_initializer.hugging_face import (
    HuggingFaceDatasetParams,
    HuggingFaceModelParams,
    HuggingFaceTrainerParams,
)
from kubeflow.training import TrainingClient
from peft import LoraConfig

TrainingClient().train(
    name="fine-tune-llama",
    num_workers=4,
    num_procs_per_worker=2,
    resources_per_worker={"gpu": 2, "cpu": 5, "memory": "10G"},
    model_provider_parameters=HuggingFaceModelParams(
        model_uri="hf://meta-llama/Llama-3.1-8B", transformer_type=transformers.AutoModelForCausalLM
    ),
    dataset_provider_parameters=HuggingFaceDatasetParams(repo_id="imdatta0/ultrachat_1k", split="train[:100]"),
    trainer_parameters=HuggingFaceTrainerParams(
        training_parameters=transformers.TrainingArguments(
            output_dir="test", per_device_train_batch_size=2, gradient_accumulation_steps=4, bf16=True
        ),
        lora_config=LoraConfig(r=8, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], bias="none"),
    ),
)
