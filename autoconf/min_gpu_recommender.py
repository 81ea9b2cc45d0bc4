"""The ado custom experiment ``min_gpu_recommender``. The other experiments are in ``autoconf.experiments``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoconf.experiments.declaration import experiment
from autoconf.jobs.job import Job
from autoconf.jobs.queries import MIN_GPUS

if TYPE_CHECKING:
    from autoconf.planner.results import Recommendation
    from autoconf.predictor.user_versions import ModelsFolder


@experiment(
    MIN_GPUS,
    "Recommends the minimum number of GPUs per worker, and of workers, that a tuning job needs to "
    "run without running out of GPU memory. Outputs: can_recommend (1, or 0 if the job is outside the version's "
    "domain or fits on no number of GPUs considered), gpus (per worker) and workers, or the reason why there is no "
    "recommendation; gpus x workers divides batch_size.",
)
def min_gpu_recommender(job: Job, models: ModelsFolder = None) -> Recommendation:
    """Recommend the smallest number of GPUs that a tuning job fits on.

    Args:
        model_name: a model of the version's domain, or a Hugging Face id of one.
        method: ``full`` or ``lora``.
        gpu_model: a type of GPU of the version's domain.
        tokens_per_sample: tokens that each sample is padded or cut to, >= 1.
        batch_size: global batch, >= 1: samples per micro-batch over all GPUs.
        model_version: a released predictor version.
        gpus_per_worker: GPUs of one node, >= 1.
        max_gpus: most GPUs to consider in total, >= 1.
        gradient_accumulation_steps: micro-batches per optimizer step, >= 1. With 1, FSDP shards gradients at once.
        stack: the training stack, one of ``autoconf.jobs.presets.presets()``. Settings below that are empty have the
            value of the stack.
        optim: ``adamw_torch``, ``adamw_torch_fused``, ``adamw_bnb_8bit``, ``paged_adamw_8bit``, ``adafactor`` or
            ``sgd``; from version 3.0.0 on also ``adamw_8bit``, ``paged_adamw_32bit``, ``lion_8bit``, ``lion_32bit``,
            ``paged_lion_8bit`` or ``paged_lion_32bit``.
        torch_dtype: ``bfloat16`` or ``float32``, the dtype of the loaded parameters.
        adapter_dtype: ``bfloat16`` or ``float32``, the dtype of the LoRA adapters.
        mixed_precision: ``no`` or ``bf16``.
        gradient_checkpointing: ``none``, ``reentrant``, ``non-reentrant`` or ``offloaded``, from version 3.0.0 on.
        loss: ``full`` or ``chunked``.
        sharding: ``ddp``, ``fsdp1`` or ``fsdp2``.
        lora_r: LoRA rank, >= 1.
        lora_targets: ``default``, ``attention``, ``all-linear``, or names of modules such as ``q_proj,v_proj``.
        lora_dropout: dropout of adapters, from 0 to less than 1.
        trained_modules: ``none``, ``embeddings``, ``head`` or ``embeddings_and_head``, trained whole beside adapters.
        use_dora: whether adapters are DoRA's.
        lora_layers: ``all``, or numbers of the layers with adapters such as ``16-31``.
        upcast_unquantized: ``none``, ``norms`` or ``all``: parameters of a 4-bit base that become float32.
        offload: ``none``, ``optimizer``, ``parameters`` or ``optimizer_and_parameters``, which the host's memory holds.
        allocator: ``default``, or ``expandable_segments`` of PyTorch's caching allocator.
        objective: ``sft``, ``reward``, ``dpo``, ``dpo_precomputed``, ``orpo``, ``kto`` or ``grpo``, by TRL.
        quantization: ``nf4``, ``nf4_single``, ``nf4_experts``, ``int8``, ``gptq`` or ``awq``: how the base of
            ``qlora`` is quantized.
        gradient_sync: ``last`` or ``every``: the micro-batches at which FSDP reduces gradients.
        attention: ``flash`` or ``sdpa``; ``eager`` is refused, because its scores are not counted.
        loading: ``cpu``, ``gpu`` or ``rank0``: where the weights are before FSDP shards them.
        image_tokens: tokens of each sample that are images, >= 1, among ``tokens_per_sample``, for a model with a
            vision tower, which is frozen.
        gpu_memory_gib: usable memory of each GPU, from 1 to 1024 GiB, for a type that the version does not have; the
            ``gpu_model`` may then be omitted in Python, and have any name in ado.
        host_memory_limit_gib: most memory that the job may take on the host of one worker, from 1 to 65536 GiB.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``gpus`` (per worker) and ``workers``; if it is 0, the ``reason``.

    Raises:
        ValueError: a value can never be right, such as a batch of 0, or settings exclude each other; the message names
            the field or both settings.
        AutoConfError: the installation is broken.

    >>> min_gpu_recommender(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                     tokens_per_sample=8192, batch_size=16, model_version="1.1.0")
    {'can_recommend': 1, 'gpus': 2, 'workers': 1, 'outcome': 'ok'}
    >>> min_gpu_recommender(model_name="llama-7b", method="qlora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                     tokens_per_sample=8192, batch_size=16, model_version="1.1.0")["reason"]
    "method 'qlora' is not in the domain of version 1.1.0, which has full and lora"
    """
    from autoconf import recommend

    return recommend(job, models=models)
