"""One tuning job, validated: what somebody is about to run, and what may be said of its fields."""

from __future__ import annotations

import numbers
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

_LONGEST_NUMBER = 40  # characters; no number worth reading is longer
# Beyond this no field is meaningful, and arithmetic in 64 bits stays exact.
LARGEST_NUMBER = 2**53
_LONGEST_NAME = 300

# What "fits" means: answers hold for this way of training and for no other.
TRAINING_STACK = (
    "supervised fine-tuning with transformers and PEFT: parameters, gradients and AdamW's states in bfloat16, "
    "FlashAttention, gradient checkpointing, full logits, LoRA of rank 4; on several GPUs FSDP full shard"
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


NAMES = ("model_name", "method", "gpu_model", "model_version")


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
        A name or a whole number, whichever the field takes; for an empty value the field's default.

    Raises:
        ValueError: it cannot be one, or is empty and the field has no default; the message names the field.

    >>> read("method", " lora "), read("batch_size", "8"), read("max_gpus", "")
    ('lora', 8, 8)
    """
    if is_empty(value):
        if field in OPTIONAL:
            return OPTIONAL[field]
        raise ValueError(f"{field}: is required")
    return name(field, value) if field in NAMES else whole_number(field, value)


class Workload(BaseModel):
    """A tuning job: supervised fine-tuning of one model with one method on one type of GPU.

    >>> job = Workload.parse(
    ...     model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample="2048", batch_size=8.0
    ... )
    >>> job.tokens_per_sample, job.max_gpus
    (2048, 8)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str = Field(
        description="Model to tune: a name of the version's domain such as llama-7b, or a Hugging Face id of one"
    )
    method: str = Field(description="Tuning method: full or lora")
    gpu_model: str = Field(description="Type of GPU, named as in the version's domain, such as NVIDIA-A100-80GB-PCIe")
    tokens_per_sample: int = Field(description="Tokens that each sample is padded or cut to; a whole number >= 1")
    batch_size: int = Field(description="Global batch size: samples per micro-batch over all GPUs; a whole number >= 1")
    model_version: str | None = Field(None, description="Version of the predictor, such as 1.1.0")
    gpus_per_worker: int = Field(8, description="GPUs of one worker (node), at most; a whole number >= 1")
    max_gpus: int = Field(8, description="Most GPUs to consider, over all workers; a whole number >= 1")
    gradient_accumulation_steps: int = Field(
        4,
        description="Micro-batches per optimizer step; a whole number >= 1. With 1, FSDP shards gradients at once, "
        "which decides what fits for large models",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return read(str(info.field_name), value)

    @classmethod
    def parse(cls, **fields: Any) -> Workload:
        """Validate the fields of a job. An empty one, as ``is_empty`` has it, is as if it were not given.

        Raises:
            ValueError: a field is missing, unknown or has a value that can never be right; the message names every
                such field.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError("; ".join(_sentence(detail) for detail in error.errors())) from None


REQUIRED = tuple(field for field, info in Workload.model_fields.items() if info.is_required())
OPTIONAL = {field: info.default for field, info in Workload.model_fields.items() if not info.is_required()}


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
