"""One tuning job, validated: what somebody is about to run, and what may be said of its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autoconf.jobs.presets import SETTINGS, presets, stack_name, training_stack
from autoconf.jobs.stack import Checkpointing, Dtype, LoraTargets, Loss, MixedPrecision, Optim, Sharding, Stack
from autoconf.jobs.values import choice, is_empty, name, whole_number

# What "fits" means: answers hold for this way of training and for no other.
TRAINING_STACK = (
    "the stack that the job names (ado-autoconf stacks lists them). By default it is reference: supervised fine-tuning "
    "with transformers and PEFT, parameters, gradients and AdamW's states in bfloat16, FlashAttention, gradient "
    "checkpointing, full logits, LoRA of rank 4, and on several GPUs FSDP full shard"
)


NAMES = ("model_name", "method", "gpu_model", "model_version")
BATCHES = ("batch_size", "per_device_train_batch_size")  # a job has one of them
# The fields that its training stack follows from.
STACK_FIELDS = ("method", "gradient_accumulation_steps", "stack", *SETTINGS)
TOGETHER = (*BATCHES, *STACK_FIELDS)  # fields that must go together


def read(field: str, value: Any, optional: Mapping[str, Any] | None = None) -> Any:
    """Read the value of a field of a job, by whichever way it came: the one rule for all of them.

    Args:
        field: its name.
        value: as somebody gave it.
        optional: the fields that may be empty, with their defaults: a question's; by default those of a ``Workload``.

    Returns:
        A name, a whole number or one of the field's choices, whichever it takes; for an empty value its default.

    Raises:
        ValueError: it cannot be one, or is empty and the field has no default; the message names the field.

    >>> read("method", " lora "), read("batch_size", "8"), read("max_gpus", ""), read("sharding", "FSDP2")
    ('lora', 8, 8, 'fsdp2')
    """
    if is_empty(value):
        optional = OPTIONAL if optional is None else optional
        if field in optional:
            return optional[field]
        raise ValueError(f"{field}: is required")
    if field in NAMES:
        return name(field, value)
    return whole_number(field, value) if field in NUMBERS else choice(field, value, choices(field))


def _says(what: str, choices: Any) -> str:
    """The description of a setting that a job may leave to its stack."""
    return f"{what}: {', '.join(get_args(choices))}; by default what the stack says"


_GPU_MODEL = "Type of GPU, named as in the version's domain, such as NVIDIA-A100-80GB-PCIe"
_TOKENS = "Tokens that each sample is padded or cut to; a whole number >= 1"


class Job(BaseModel):
    """What is known of a tuning job. What it lacks of a ``Workload`` is what somebody asks.

    >>> job = Job.parse(model_name="llama-7b", method="lora", tokens_per_sample=2048, batch_size="8", max_gpus="")
    >>> job.gpu_model is None, job.batch_size, "max_gpus" in job.model_fields_set
    (True, 8, False)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str = Field(
        description="Model to tune: a name of the version's domain such as llama-7b, or a Hugging Face id of one"
    )
    method: str = Field(description="Tuning method: full or lora, and qlora where the version has it")
    gpu_model: str | None = Field(None, description=_GPU_MODEL)
    tokens_per_sample: int | None = Field(None, description=_TOKENS)
    batch_size: int | None = Field(
        None, description="Global batch size: samples per micro-batch over all GPUs; a whole number >= 1"
    )
    per_device_train_batch_size: int | None = Field(
        None, description="Instead of batch_size: samples per micro-batch on each GPU; a whole number >= 1"
    )
    model_version: str | None = Field(None, description="Version of the predictor, such as 1.1.0")
    gpus_per_worker: int = Field(8, description="GPUs of one worker (node), at most; a whole number >= 1")
    max_gpus: int = Field(8, description="Most GPUs to consider, over all workers; a whole number >= 1")
    gradient_accumulation_steps: int = Field(
        4,
        description="Micro-batches per optimizer step; a whole number >= 1. With 1, FSDP shards gradients at once, "
        "which decides what fits for large models",
    )
    stack: str = Field(
        "reference",
        description="How the job trains, by a preset's name, such as reference or trl; ado-autoconf stacks lists them",
    )
    optim: Optim | None = Field(None, description=_says("Optimizer, by the Trainer's name", Optim))
    torch_dtype: Dtype | None = Field(None, description=_says("Dtype that parameters are loaded in", Dtype))
    adapter_dtype: Dtype | None = Field(None, description=_says("Dtype of LoRA's adapters", Dtype))
    mixed_precision: MixedPrecision | None = Field(None, description=_says("Autocast", MixedPrecision))
    gradient_checkpointing: Checkpointing | None = Field(
        None, description=_says("Whether each decoder layer is recomputed, and by which of torch's ways", Checkpointing)
    )
    loss: Loss | None = Field(
        None, description=_says("Cross-entropy over all logits, or fused with the head over chunks of tokens", Loss)
    )
    sharding: Sharding | None = Field(
        None, description=_says("What several GPUs do: replicate, or shard fully", Sharding)
    )
    lora_r: int | None = Field(None, description="LoRA's rank; a whole number >= 1; by default what the stack says")
    lora_targets: LoraTargets | None = Field(
        None, description=_says("Modules with adapters, default being the model's own pair", LoraTargets)
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {f: value for f, value in fields.items() if f not in cls.model_fields or not is_empty(value)}

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return read(str(info.field_name), value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stack_of(dict(self))
        return self

    @classmethod
    def parse(cls, **fields: Any) -> Self:
        """Validate the fields of a job. An empty one, as ``is_empty`` has it, is as if it were not given.

        Raises:
            ValueError: a field is missing, unknown or has a value that can never be right, or fields exclude each
                other; the message names every such field.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError("; ".join(_sentence(detail) for detail in error.errors())) from None

    def training_stack(self) -> Stack:
        """The stack that the job trains with: its preset's settings, unless it says otherwise.

        >>> Job(model_name="llama-7b", method="full", loss="chunked").training_stack().loss
        'chunked'
        """
        return stack_of(dict(self))

    def stack_name(self) -> str:
        """The stack in a few words: the preset, and what the job changes of it."""
        return stack_name(self.method, self.stack, *(getattr(self, field) for field in SETTINGS))


class Workload(Job):
    """A tuning job: supervised fine-tuning of one model with one method on one type of GPU.

    It has either ``batch_size`` or ``per_device_train_batch_size``.

    >>> job = Workload.parse(
    ...     model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample="2048", batch_size=8.0,
    ...     stack="TRL",
    ... )
    >>> job.tokens_per_sample, job.max_gpus, job.stack
    (2048, 8, 'trl')
    """

    gpu_model: str = Field(description=_GPU_MODEL)
    tokens_per_sample: int = Field(description=_TOKENS)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_together(dict(self))
        return self


_OF_EVERY_JOB = tuple(field for field, info in Job.model_fields.items() if info.is_required())
REQUIRED = tuple(field for field, info in Workload.model_fields.items() if info.is_required())
OPTIONAL = {field: info.default for field, info in Workload.model_fields.items() if not info.is_required()}
NUMBERS = tuple(
    field for field, info in Workload.model_fields.items() if int in (info.annotation, *get_args(info.annotation))
)


def choices(field: str) -> tuple[str, ...]:
    """What a field that is neither a number nor a name may be.

    >>> choices("loss")
    ('full', 'chunked')
    """
    if field == "stack":
        return tuple(presets())
    return tuple(value for part in get_args(Workload.model_fields[field].annotation) for value in get_args(part))


def stack_of(fields: Mapping[str, Any]) -> Stack:
    """The training stack of a job whose fields were read; one that is absent has its default.

    Raises:
        ValueError: settings exclude each other; the message names both.
    """
    method, steps, *settings = (fields[f] if f in fields else OPTIONAL[f] for f in STACK_FIELDS)
    return training_stack(method, steps > 1, *settings)


def check_together(fields: Mapping[str, Any], batches: Sequence[str] = BATCHES, asked: Sequence[str] = ()) -> None:
    """Check whether the fields of a job, each valid by itself, go together.

    Args:
        fields: values that were read.
        batches: the fields that may hold the batch; a job has exactly one of them, or none where this is empty.
        asked: fields that the query answers, which a job must leave out.

    Raises:
        ValueError: they do not; the message names both.

    >>> check_together({"method": "full"})
    Traceback (most recent call last):
    ValueError: batch_size: is required, or per_device_train_batch_size in its place
    """
    for field in asked:
        if fields.get(field) is not None:
            raise ValueError(f"{field}: is what is asked: leave it out")
    given = [field for field in BATCHES if fields.get(field) is not None]
    if batches and not given:
        first, *others = batches
        raise ValueError(", or ".join([f"{first}: is required", *(f"{other} in its place" for other in others)]))
    if len(given) > 1:
        raise ValueError("batch_size and per_device_train_batch_size exclude each other: give one of them")
    for field in given:
        if field not in batches:
            raise ValueError(f"{field}: give {' or '.join(batches)} in its place")
    stack_of(fields)


def _sentence(detail: Any) -> str:
    """One line for one of pydantic's errors; our own validators' messages already name the field."""
    field = ".".join(map(str, detail["loc"]))
    match detail["type"]:
        case "missing":
            return f"{field}: is required"
        case "extra_forbidden":
            return f"{field}: no such field; the fields are {', '.join(Workload.model_fields)}"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return f"{field}: {detail['msg']}"
