"""The ado custom experiments beside the first: the questions next door, each a declaration and a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoconf.declaration import experiment
from autoconf.questions import ESTIMATE
from autoconf.workload import Job

if TYPE_CHECKING:
    from autoconf.estimator import Estimate


@experiment(
    ESTIMATE,
    "Says whether a tuning job fits on a number of GPUs, how likely that is, and where each GPU's memory goes. "
    "Outputs: fits (1 or 0), probability (of fitting), and in GiB the peak_memory_gib, the needed_memory_gib, which is "
    "the sum of the parts (weights, gradients, optimizer, gathered, activations, reserve), the usable_memory_gib of "
    "the GPU and the headroom_gib between the two; or the reason why there is no estimate.",
)
def memory_estimator(job: Job, number_gpus: int) -> Estimate:
    """Say what a tuning job holds on each of a number of GPUs, and whether it fits.

    Args:
        job: by its fields, as ``min_gpu_recommender`` has them, without ``gpus_per_worker`` and ``max_gpus``.
        number_gpus: GPUs in total, >= 1; it divides ``batch_size``.

    Returns:
        The fields of ``autoconf.Estimate``; only the ``reason`` where there is no estimate.

    Raises:
        ValueError: a value can never be right, or settings exclude each other; the message names the field or both.
        AutoConfError: the installation is broken.

    >>> found = memory_estimator(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                          tokens_per_sample=8192, batch_size=16, number_gpus=2, model_version="2.0.0")
    >>> found["fits"], f"{found['headroom_gib']:.1f} GiB left"
    (1, '18.7 GiB left')
    """
    from autoconf import estimate

    return estimate(job, number_gpus)
