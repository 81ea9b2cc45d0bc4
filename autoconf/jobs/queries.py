"""The questions beside ``MIN_GPUS``: which fields and numbers their jobs have, and what the answers tell."""

from __future__ import annotations

from autoconf.jobs.job import Question

NUMBER_GPUS = "number_gpus"
BESIDE = {NUMBER_GPUS: "GPUs that the job gets, over all workers; a whole number >= 1"}

AVOID_OOM = Question(batches=("per_device_train_batch_size",), beside=(NUMBER_GPUS,), max_gpus=64)
LARGEST_BATCH = Question(
    ("can_recommend", "per_device_train_batch_size", "batch_size", "reason"), batches=(), beside=(NUMBER_GPUS,)
)
LARGEST_SAMPLE = Question(("can_recommend", "tokens_per_sample", "reason"), beside=(NUMBER_GPUS,))
GPU_MODEL = Question(("can_recommend", "gpu_model", "gpus", "workers", "cost_per_hour", "rank", "reason"))
ESTIMATE = Question(
    (
        "fits", "probability", "peak_memory_gib", "needed_memory_gib", "usable_memory_gib", "headroom_gib",
        "weights_gib", "gradients_gib", "optimizer_gib", "gathered_gib", "activations_gib", "reserve_gib", "reason",
    ),
    beside=(NUMBER_GPUS,),
)  # fmt: skip
