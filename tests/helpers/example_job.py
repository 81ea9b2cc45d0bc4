"""The job of the examples."""

EXAMPLE = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
    "model_version": "1.1.0",
}
