"""The ado custom experiments: properties and thin decorated functions, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import autoconf.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed
from autoconf.presets import SETTINGS
from autoconf.workload import NAMES, OPTIONAL, REQUIRED, TRAINING_STACK, Workload, is_empty

from ado.modules.actuators.custom_experiments import custom_experiment
from ado.schema.domain import PropertyDomain, VariableTypeEnum
from ado.schema.property import ConstitutiveProperty

_NAME = PropertyDomain(variableType=VariableTypeEnum.OPEN_CATEGORICAL_VARIABLE_TYPE)
# Open to every number: whether a job lies in a version's domain is that version's business, and a value that can never
# be right is refused by name in ``Workload``, in a sentence that ado's domains cannot give.
_NUMBER = PropertyDomain(variableType=VariableTypeEnum.CONTINUOUS_VARIABLE_TYPE)


# In a space that asks only for text, numbers are welcome too: what a job may leave to its stack has "" for a default.
_OPEN = (*NAMES, "stack", *SETTINGS)


def _properties(fields: Any) -> list[Any]:
    return [
        ConstitutiveProperty(
            identifier=field,
            propertyDomain=_NAME if field in _OPEN else _NUMBER,
            metadata={"description": Workload.model_fields[field].description},
        )
        for field in fields
    ]


def _validated(experiment: Callable[..., dict[str, int | str]]) -> Callable[..., dict[str, int | str]]:
    """Check the arguments before ado does, so that a bad one is named, and pass them on as what they stand for."""

    parameters = list(signature(experiment).parameters)

    @wraps(experiment)  # carries ado's attributes along, which is how its actuator knows a custom experiment
    def checked(*values: Any, **job: Any) -> dict[str, int | str]:
        if len(values) > len(parameters):
            raise ValueError(f"{len(values)} values for the {len(parameters)} fields {', '.join(parameters)}")
        for field, value in zip(parameters, values, strict=False):
            if field in job:
                raise ValueError(f"{field}: given twice")
            job[field] = value
        for field in job:
            if field not in parameters:
                raise ValueError(f"{field}: no such field; the fields are {', '.join(parameters)}")
        for field in _REQUIRED_HERE:
            if is_empty(job.get(field)):
                raise ValueError(f"{field}: is required")
        return experiment(**Workload.parse(**job).model_dump(exclude_none=True))

    return checked


# An experiment's properties are required or not, whichever others there are: here a job has the global batch.
_REQUIRED_HERE = ("batch_size", "model_version")


@_validated
@custom_experiment(
    required_properties=_properties([*REQUIRED, *_REQUIRED_HERE]),
    optional_properties=_properties(
        field for field in OPTIONAL if field not in (*_REQUIRED_HERE, "per_device_train_batch_size")
    ),
    output_property_identifiers=["can_recommend", "gpus", "workers", "reason"],
    metadata={
        "description": "Recommends the minimum number of GPUs per worker, and of workers, that a tuning job needs to "
        "run without running out of GPU memory. Outputs: can_recommend (1, or 0 if the job lies outside the version's "
        "domain or fits on no number of GPUs considered), gpus (per worker) and workers, or the reason why there is no "
        "recommendation; gpus x workers divides batch_size. "
        f"Answers hold for {TRAINING_STACK}."
    },
)
def min_gpu_recommender(
    model_name: str,
    method: str,
    gpu_model: str,
    tokens_per_sample: int,
    batch_size: int,
    model_version: str,
    gpus_per_worker: int = 8,
    max_gpus: int = 8,
    gradient_accumulation_steps: int = 4,
    stack: str = "reference",
    optim: str = "",
    torch_dtype: str = "",
    adapter_dtype: str = "",
    mixed_precision: str = "",
    gradient_checkpointing: str = "",
    loss: str = "",
    sharding: str = "",
    lora_r: int | str = "",
    lora_targets: str = "",
) -> dict[str, int | str]:
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
        stack: how the job trains: one of ``autoconf.presets.presets()``. What follows is what the stack says, where
            it is empty.
        optim: ``adamw_torch``, ``adamw_torch_fused``, ``adamw_bnb_8bit``, ``paged_adamw_8bit``, ``adafactor`` or
            ``sgd``.
        torch_dtype: ``bfloat16`` or ``float32``, of the loaded parameters.
        adapter_dtype: ``bfloat16`` or ``float32``, of LoRA's adapters.
        mixed_precision: ``no`` or ``bf16``.
        gradient_checkpointing: ``none``, ``reentrant`` or ``non-reentrant``.
        loss: ``full`` or ``chunked``.
        sharding: ``ddp``, ``fsdp1`` or ``fsdp2``.
        lora_r: LoRA's rank, >= 1.
        lora_targets: ``default``, ``attention`` or ``all-linear``.

    Returns:
        ``can_recommend`` (0 or 1) and, if it is 1, ``gpus`` (per worker) and ``workers``; if it is 0, the ``reason``.

    Raises:
        ValueError: a value can never be right, such as a batch of 0, or settings exclude each other; the message names
            the field or both settings.
        AutoConfError: the installation is broken.

    >>> min_gpu_recommender(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                     tokens_per_sample=8192, batch_size=16, model_version="1.1.0")
    {'can_recommend': 1, 'gpus': 2, 'workers': 1}
    >>> min_gpu_recommender(model_name="llama-7b", method="qlora", gpu_model="NVIDIA-A100-80GB-PCIe",
    ...                     tokens_per_sample=8192, batch_size=16, model_version="1.1.0")["reason"]
    "method 'qlora' is not in the domain of version 1.1.0, which has full and lora"
    """
    from autoconf import recommend

    answer = recommend(
        Workload.parse(
            model_name=model_name,
            method=method,
            gpu_model=gpu_model,
            tokens_per_sample=tokens_per_sample,
            batch_size=batch_size,
            model_version=model_version,
            gpus_per_worker=gpus_per_worker,
            max_gpus=max_gpus,
            gradient_accumulation_steps=gradient_accumulation_steps,
            stack=stack,
            optim=optim,
            torch_dtype=torch_dtype,
            adapter_dtype=adapter_dtype,
            mixed_precision=mixed_precision,
            gradient_checkpointing=gradient_checkpointing,
            loss=loss,
            sharding=sharding,
            lora_r=lora_r,
            lora_targets=lora_targets,
        )
    )
    if answer.gpus is None or answer.workers is None:
        return {"can_recommend": 0, "reason": answer.reason}
    return {"can_recommend": 1, "gpus": answer.gpus, "workers": answer.workers}
