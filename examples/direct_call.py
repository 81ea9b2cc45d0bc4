"""Answer one job with a plain Python call: the decorated experiment is an ordinary function."""

from autoconf.min_gpu_recommender import min_gpu_recommender

if __name__ == "__main__":
    print(
        min_gpu_recommender(
            model_name="llama-7b",
            method="lora",
            gpu_model="NVIDIA-A100-80GB-PCIe",
            tokens_per_sample=8192,
            batch_size=16,
            model_version="1.1.0",
        )
    )
