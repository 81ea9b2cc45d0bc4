"""Run the other queries with plain Python calls: each experiment is an ordinary function."""

from autoconf.experiments import (
    avoid_oom_recommender,
    gpu_model_recommender,
    largest_batch_recommender,
    largest_sample_recommender,
    memory_estimator,
)

MODEL = {"model_name": "llama-7b", "method": "lora", "model_version": "2.0.0"}
GPU = {"gpu_model": "NVIDIA-A100-80GB-PCIe"}

if __name__ == "__main__":
    print(
        avoid_oom_recommender(
            **MODEL, gpu_model="L40S", tokens_per_sample=8192, per_device_train_batch_size=6, number_gpus=2
        )
    )
    # {'can_recommend': 1, 'gpus': 5, 'workers': 1, 'outcome': 'ok'}
    print(largest_batch_recommender(**MODEL, **GPU, tokens_per_sample=8192, number_gpus=2))
    # {'can_recommend': 1, 'per_device_train_batch_size': 10, 'batch_size': 20, 'outcome': 'ok'}
    print(largest_sample_recommender(**MODEL, **GPU, batch_size=16, number_gpus=2))
    # {'can_recommend': 1, 'tokens_per_sample': 11188, 'outcome': 'ok'}
    cheapest = gpu_model_recommender(**MODEL, tokens_per_sample=8192, batch_size=16, steps=1000)
    print({name: cheapest[name] for name in ("gpu_model", "gpus", "cost_per_hour")}, round(cheapest["cost"], 2))
    # {'gpu_model': 'NVIDIA-GeForce-RTX-4090', 'gpus': 8, 'cost_per_hour': 2.72} 29.14
    memory = memory_estimator(**MODEL, **GPU, tokens_per_sample=8192, batch_size=16, number_gpus=2)
    print({name: round(memory[name], 2) for name in ("fits", "peak_memory_gib", "headroom_gib")})
    # {'fits': 1, 'peak_memory_gib': 47.61, 'headroom_gib': 18.67}
