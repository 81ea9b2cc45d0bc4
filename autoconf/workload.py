"""One tuning job, validated: what somebody is about to run, and what may be said of its fields."""

from __future__ import annotations

import numbers
from collections.abc import Container, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autoconf.names import key
from autoconf.presets import SETTINGS, presets, stack_name, training_stack
from autoconf.stack import Checkpointing, Dtype, LoraTargets, Loss, MixedPrecision, Optim, Sharding, Stack

_LONGEST_NUMBER = 40  # characters; no number worth reading is longer
# Beyond this no field is meaningful, and arithmetic in 64 bits stays exact.
LARGEST_NUMBER = 2**53
_LONGEST_NAME = 300

# What "fits" means: answers hold for this way of training and for no other.
TRAINING_STACK = (
    "the stack that the job names (ado-autoconf stacks lists them). By default it is reference: supervised fine-tuning "
    "with transformers and PEFT, parameters, gradients and AdamW's states in bfloat16, FlashAttention, gradient "
    "checkpointing, full logits, LoRA of rank 4, and on several GPUs FSDP full shard"
)


def is_empty(value: Any) -> bool:
    """Whether a value is as if it had not been given: None, NaN, whatever else pandas takes for missing, blank text.

    >>> is_empty(None), is_empty(" "), is_empty(float("nan")), is_empty(0)
    (True, True, True, False)
    """
    if value is None or isinstance(value, str):
        return not (value and value.strip())
    if isinstance(value, Decimal):
        return value.is_nan()  # of a signalling NaN even the comparison with itself fails
    if isinstance(value, numbers.Number):
        return bool(value != value)
    import pandas as pd  # not before it is needed: ado loads this module into each of its processes

    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def whole_number(field: str, value: Any) -> int:
    """Read a whole number >= 1.

    Args:
        field: name for the error message.
        value: an int, a float, a ``Decimal``, a ``Fraction`` or one of numpy's scalars, or text that writes one (as CSV
            files do). What it stands for is taken exactly: ``Fraction(10**30 + 1, 10**30)`` is not 1.

    Raises:
        ValueError: the value is anything else: zero, negative, fractional, NaN, infinite, a boolean, bytes, None, a
            number beyond 2**53 ...

    >>> whole_number("batch_size", "16"), whole_number("batch_size", 16.0)
    (16, 16)
    >>> whole_number("batch_size", 0)
    Traceback (most recent call last):
    ValueError: batch_size: must be a whole number >= 1, got 0
    """
    number = _number(value)
    huge = number is not None and number > LARGEST_NUMBER
    if number is None or huge or number < 1 or number != int(number):
        limit = f"<= {LARGEST_NUMBER}" if huge else ">= 1"
        raise ValueError(f"{field}: must be a whole number {limit}, got {_quoted(value)}")
    return int(number)


def _number(value: Any) -> int | Fraction | Decimal | None:
    """The number that a value stands for, exactly; None where it stands for none, or for no finite one."""
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and value.isascii() and "_" not in value:
        try:
            value = Decimal(value)
        except ArithmeticError:
            return None
    match value:
        case bool():
            return None
        case Decimal():  # never as a fraction: 1e999999999 has that many digits
            return value if value.is_finite() else None
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            try:
                return Fraction(*value.as_integer_ratio())  # type: ignore[attr-defined]
            except (AttributeError, ValueError, OverflowError):  # another library's, NaN, infinite
                return None
    return None


def name(field: str, value: Any) -> str:
    """Read a name: non-empty text without surrounding white space.

    Whether a version knows the name is the version's business; here only what can never be a name is refused.

    Raises:
        ValueError: the value is not text, is empty, is longer than 300 characters or cannot be written in UTF-8.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME:
        raise ValueError(
            f"{field}: must be a non-empty text of at most {_LONGEST_NAME} characters, got {_quoted(value)}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # an option's bytes were no UTF-8; nothing that is written could hold the name
        raise ValueError(f"{field}: must be text in UTF-8, got {_quoted(value)}") from None
    return value.strip()


def choice(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Read one of a few names, found whatever its case and separators.

    Raises:
        ValueError: it is none of them; the message lists them.

    >>> choice("optim", "AdamW-torch", ("adamw_torch", "sgd"))
    'adamw_torch'
    >>> choice("optim", "adam2", ("adamw_torch", "sgd"))
    Traceback (most recent call last):
    ValueError: optim: must be adamw_torch or sgd, got 'adam2'
    """
    # YAML reads a "no" without quotes as False, which ado makes a 0.
    text = "no" if isinstance(value, bool | int | float) and value == 0 else value
    if isinstance(text, str) and len(text) <= _LONGEST_NAME:
        for known in allowed:
            if key(text) == key(known):
                return known
    *most, last = allowed
    raise ValueError(f"{field}: must be {', '.join(most)} or {last}, got {_quoted(value)}")


NAMES = ("model_name", "method", "gpu_model", "model_version")
BATCHES = ("batch_size", "per_device_train_batch_size")  # a job has one of them
# The fields that its training stack follows from.
STACK_FIELDS = ("method", "gradient_accumulation_steps", "stack", *SETTINGS)
TOGETHER = (*BATCHES, *STACK_FIELDS)  # fields that must go together


def _quoted(value: Any) -> str:
    """The value as Python writes it, cut so that a message stays one line."""
    try:
        text = ascii(value)
    except Exception as error:
        text = f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def read(field: str, value: Any) -> Any:
    """Read the value of a field of a job, by whichever way it came: the one rule for all of them.

    Returns:
        A name, a whole number or one of the field's choices, whichever it takes; for an empty value its default.

    Raises:
        ValueError: it cannot be one, or is empty and the field has no default; the message names the field.

    >>> read("method", " lora "), read("batch_size", "8"), read("max_gpus", ""), read("sharding", "FSDP2")
    ('lora', 8, 8, 'fsdp2')
    """
    if is_empty(value):
        if field in OPTIONAL:
            return OPTIONAL[field]
        raise ValueError(f"{field}: is required")
    if field in NAMES:
        return name(field, value)
    return whole_number(field, value) if field in NUMBERS else choice(field, value, choices(field))


def _says(what: str, choices: Any) -> str:
    """The description of a setting that a job may leave to its stack."""
    return f"{what}: {', '.join(get_args(choices))}; by default what the stack says"


class Workload(BaseModel):
    """A tuning job: supervised fine-tuning of one model with one method on one type of GPU.

    It has either ``batch_size`` or ``per_device_train_batch_size``.

    >>> job = Workload.parse(
    ...     model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample="2048", batch_size=8.0,
    ...     stack="TRL",
    ... )
    >>> job.tokens_per_sample, job.max_gpus, job.stack
    (2048, 8, 'trl')
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str = Field(
        description="Model to tune: a name of the version's domain such as llama-7b, or a Hugging Face id of one"
    )
    method: str = Field(description="Tuning method: full or lora, and qlora where the version has it")
    gpu_model: str = Field(description="Type of GPU, named as in the version's domain, such as NVIDIA-A100-80GB-PCIe")
    tokens_per_sample: int = Field(description="Tokens that each sample is padded or cut to; a whole number >= 1")
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

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return read(str(info.field_name), value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_together(dict(self))
        return self

    @classmethod
    def parse(cls, **fields: Any) -> Workload:
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

        >>> job = {"model_name": "llama-7b", "method": "full", "gpu_model": "L40S", "tokens_per_sample": 2048}
        >>> Workload.parse(**job, batch_size=8, loss="chunked").training_stack().loss
        'chunked'
        """
        return stack_of(dict(self))

    def stack_name(self) -> str:
        """The stack in a few words: the preset, and what the job changes of it."""
        return stack_name(self.method, self.stack, *(getattr(self, field) for field in SETTINGS))


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


def check_together(fields: Mapping[str, Any]) -> None:
    """Check whether the fields of a job, each right by itself, go together.

    Raises:
        ValueError: they do not; the message names both.

    >>> check_together({"method": "full"})
    Traceback (most recent call last):
    ValueError: batch_size: is required, or per_device_train_batch_size in its place
    """
    given = [field for field in BATCHES if fields.get(field) is not None]
    if not given:
        raise ValueError("batch_size: is required, or per_device_train_batch_size in its place")
    if len(given) > 1:
        raise ValueError("batch_size and per_device_train_batch_size exclude each other: give one of them")
    stack_of(fields)


def contradictions(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Why the fields of each of some jobs do not go together, as ``check_together`` has it; empty text if they do."""
    fields = [field for field in TOGETHER if field in columns]

    @lru_cache(maxsize=65_536)  # a table has few distinct stacks; of a batch it counts only whether there is one
    def problem(*values: Any) -> str:
        try:
            check_together(dict(zip(fields, values, strict=True)))
        except ValueError as error:
            return str(error)
        return ""

    values = ([v is not None or None for v in columns[f]] if f in BATCHES else columns[f] for f in fields)
    return [problem(*job) for job in zip(*values, strict=True)]


def missing_columns(columns: Container[Any]) -> list[str]:
    """The columns that a table of jobs needs and lacks.

    >>> missing_columns(["model_name", "method", "gpu_model", "batch_size"])
    ['tokens_per_sample']
    """
    missing = [field for field in REQUIRED if field not in columns]
    return missing if any(field in columns for field in BATCHES) else [*missing, " or ".join(BATCHES)]


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
