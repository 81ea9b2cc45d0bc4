"""The other ado custom experiments: queries about memory, batch, sample length and GPU types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoconf.experiments.declaration import experiment
from autoconf.jobs.job import Job
from autoconf.jobs.queries import AVOID_OOM, ESTIMATE, GPU_MODEL, LARGEST_BATCH, LARGEST_SAMPLE, THROUGHPUT

if TYPE_CHECKING:
    from autoconf.planner.results import Estimate, GpuModel, LargestBatch, LargestSample, Recommendation, Throughput
    from autoconf.predictor.user_versions import ModelsFolder


@experiment(
    AVOID_OOM,
    "Confirms the requested number of GPUs if a tuning job fits on it, or else recommends the next larger number on "
    "which it fits with the same per_device_train_batch_size. Outputs: can_recommend (1, or 0), gpus (per worker) and "
    "workers, or the reason why no request fits. A larger number that is recommended divides evenly over workers and "
    "is at most max_gpus; a request that fits is confirmed even if it is larger than max_gpus.",
)
def avoid_oom_recommender(job: Job, number_gpus: int, models: ModelsFolder = None) -> Recommendation:
    """Confirm the requested number of GPUs if a job fits on it, or recommend the next larger number on which it fits.

    Args:
        job: the fields of ``min_gpu_recommender``, with ``per_device_train_batch_size`` instead of ``batch_size``;
            ``max_gpus`` is 64 by default.
        number_gpus: GPUs that were requested in total, >= 1.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``gpus`` (per worker) and ``workers``; if it is 0, the ``reason``.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> avoid_oom_recommender(model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample=8192,
    ...                       per_device_train_batch_size=6, number_gpus=2, model_version="2.0.0")
    {'can_recommend': 1, 'gpus': 5, 'workers': 1, 'outcome': 'ok'}
    """
    from autoconf import avoid_oom

    return avoid_oom(job, number_gpus, models=models)


@experiment(
    LARGEST_BATCH,
    "Finds the largest batch with which a tuning job fits on a number of GPUs. Outputs: can_recommend (1, or 0), "
    "per_device_train_batch_size (samples on each GPU) and batch_size (over all GPUs), or the reason why there is "
    "none. The batch is limited to the largest batch of the version's domain.",
)
def largest_batch_recommender(job: Job, number_gpus: int, models: ModelsFolder = None) -> LargestBatch:
    """Find the largest batch with which a tuning job fits on a number of GPUs.

    Args:
        job: the fields of ``min_gpu_recommender``, without ``batch_size`` and ``max_gpus``.
        number_gpus: GPUs in total, >= 1.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``per_device_train_batch_size`` and ``batch_size``; if it is 0, the
        ``reason``.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> largest_batch_recommender(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                           tokens_per_sample=8192, number_gpus=2, model_version="2.0.0")
    {'can_recommend': 1, 'per_device_train_batch_size': 10, 'batch_size': 20, 'outcome': 'ok'}
    """
    from autoconf import largest_batch

    return largest_batch(job, number_gpus, models=models)


@experiment(
    LARGEST_SAMPLE,
    "Finds the longest samples with which a tuning job fits on a number of GPUs at a given batch. Outputs: "
    "can_recommend (1, or 0) and tokens_per_sample, or the reason why there is none. The length is limited to the "
    "longest sample of the version's domain and to the model's learned positions.",
)
def largest_sample_recommender(job: Job, number_gpus: int, models: ModelsFolder = None) -> LargestSample:
    """Find the longest samples with which a tuning job fits on a number of GPUs at a given batch.

    Args:
        job: the fields of ``min_gpu_recommender``, without ``tokens_per_sample`` and ``max_gpus``.
        number_gpus: GPUs in total, >= 1; must divide ``batch_size``.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``tokens_per_sample``; if it is 0, the ``reason``.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> largest_sample_recommender(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                            batch_size=16, number_gpus=2, model_version="2.0.0")
    {'can_recommend': 1, 'tokens_per_sample': 11188, 'outcome': 'ok'}
    """
    from autoconf import largest_sample

    return largest_sample(job, number_gpus, models=models)


@experiment(
    GPU_MODEL,
    "Recommends the type of GPU on which a run costs least on the smallest layout that fits, by the list prices of the "
    "package: by the cost of the run if its length is given, or else by the cost of a million tokens. Outputs: "
    "can_recommend (1, or 0), gpu_model, gpus (per worker), workers, cost_per_hour (US dollars, of all GPUs), "
    "tokens_per_second (of all GPUs), cost_per_million_tokens and, if the length of the run is given, hours and cost; "
    "or the reason why there is no recommendation.",
    outputs=[name for name in GPU_MODEL.answers if name != "rank"],
)
def gpu_model_recommender(
    job: Job,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    models: ModelsFolder = None,
) -> GpuModel:
    """Recommend the type of GPU on which a run costs least on the smallest layout that fits.

    Args:
        job: the fields of ``min_gpu_recommender``, without ``gpu_model``.
        dataset_tokens: tokens of the training data, >= 1; optional.
        epochs: passes over the data, >= 1; optional, by default 1.
        steps: optimizer steps of the run, >= 1, instead of ``dataset_tokens``; optional.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``gpu_model``, ``gpus`` (per worker), ``workers`` and, where they
        are known, ``cost_per_hour``, ``tokens_per_second``, ``cost_per_million_tokens`` and the ``hours`` and ``cost``
        of the run; if it is 0, the ``reason``.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> found = gpu_model_recommender(model_name="llama-7b", method="lora", tokens_per_sample=8192, batch_size=16,
    ...                               steps=1000, model_version="2.0.0")
    >>> found["can_recommend"], found["cost"] > found["cost_per_hour"] > found["cost_per_million_tokens"]
    (1, True)
    """
    from autoconf import cheapest_gpu

    return cheapest_gpu(job, dataset_tokens=dataset_tokens, epochs=epochs, steps=steps, models=models)


@experiment(
    ESTIMATE,
    "Estimates whether a tuning job fits on a number of GPUs, with which probability, and the memory of each GPU by "
    "part. Outputs: fits (1 or 0), probability (of fitting), and in GiB peak_memory_gib (allocated), "
    "peak_reserved_gib, needed_memory_gib, which is the sum of the parts (weights, gradients, optimizer, gathered, "
    "activations, fragmentation, reserve), usable_memory_gib of the GPU, headroom_gib between the two, and "
    "host_memory_gib of the host of one worker; or the reason why AutoConf cannot estimate. Versions up to 2.0.0 have "
    "neither peak_reserved_gib nor fragmentation_gib nor host_memory_gib.",
)
def memory_estimator(job: Job, number_gpus: int, models: ModelsFolder = None) -> Estimate:
    """Estimate the memory of a tuning job on each of a number of GPUs, and whether it fits.

    Args:
        job: the fields of ``min_gpu_recommender``, without ``max_gpus``.
        number_gpus: GPUs in total, >= 1; must divide ``batch_size``.

    Returns:
        The fields of ``autoconf.Estimate``; only the ``reason`` if AutoConf cannot estimate.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> found = memory_estimator(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                          tokens_per_sample=8192, batch_size=16, number_gpus=2, model_version="2.0.0")
    >>> found["fits"], f"{found['headroom_gib']:.1f} GiB left"
    (1, '18.7 GiB left')
    """
    from autoconf import estimate

    return estimate(job, number_gpus, models=models)


@experiment(
    THROUGHPUT,
    "Estimates how fast a tuning job runs on a number of GPUs. Outputs: fits (1 or 0), tokens_per_second of all GPUs "
    "with tokens_per_second_low and tokens_per_second_high (10th and 90th percentile), step_seconds (of an optimizer "
    "step), model_flops_utilization (0 to 1), limit (what takes the longest: compute, memory, network, kernel launches "
    "or offload) and, if the length of the run is given, hours and cost (US dollars); or the reason why AutoConf "
    "cannot estimate.",
)
def throughput_estimator(
    job: Job,
    number_gpus: int,
    dataset_tokens: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    models: ModelsFolder = None,
) -> Throughput:
    """Estimate how fast a tuning job runs on a number of GPUs, how long a run takes and what it costs.

    Args:
        job: the fields of ``min_gpu_recommender``, without ``max_gpus``.
        number_gpus: GPUs in total, >= 1; must divide ``batch_size``.
        dataset_tokens: tokens of the training data, >= 1; optional.
        epochs: passes over the data, >= 1; optional, by default 1.
        steps: optimizer steps of the run, >= 1, instead of ``dataset_tokens``; optional.

    Returns:
        The fields of ``autoconf.Throughput``; only the ``reason`` if AutoConf cannot estimate.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> found = throughput_estimator(model_name="mistral-7b-v0.1", method="lora", gpu_model="NVIDIA-A100-SXM4-80GB",
    ...                              tokens_per_sample=2048, batch_size=16, number_gpus=1, steps=1000,
    ...                              model_version="2.0.0")
    >>> found["fits"], found["limit"], found["hours"] > 1
    (1, 'compute', True)
    """
    from autoconf import throughput

    return throughput(job, number_gpus, dataset_tokens=dataset_tokens, epochs=epochs, steps=steps, models=models)
