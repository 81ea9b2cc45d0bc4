"""One tuning job, validated: what somebody is about to run, and what may be said of its fields."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_LONGEST_NUMBER = 40  # characters; no number worth reading is longer
# Beyond this no field is meaningful, and arithmetic in 64 bits stays exact.
LARGEST_NUMBER = 2**53
_LONGEST_NAME = 300

# What "fits" means: answers hold for this way of training and for no other.
TRAINING_STACK = (
    "supervised fine-tuning with transformers and PEFT: parameters, gradients and AdamW's states in bfloat16, "
    "FlashAttention, gradient checkpointing, full logits, LoRA of rank 4; on several GPUs FSDP full shard"
)


def whole_number(field: str, value: Any) -> int:
    """Read a whole number >= 1.

    Args:
        field: name for the error message.
        value: an int, a float or other number without fraction, or text that writes one (as CSV files do).

    Raises:
        ValueError: the value is anything else: zero, negative, fractional, NaN, infinite, a boolean, bytes, None ...

    >>> whole_number("batch_size", "16"), whole_number("batch_size", 16.0)
    (16, 16)
    >>> whole_number("batch_size", 0)
    Traceback (most recent call last):
    ValueError: batch_size: must be a whole number >= 1, got 0
    """
    number = _number(value)
    if number is None or not math.isfinite(number) or number != int(number) or not 1 <= number <= LARGEST_NUMBER:
        huge = number is not None and math.isfinite(number) and number > LARGEST_NUMBER
        limit = f"<= {LARGEST_NUMBER}" if huge else ">= 1"
        raise ValueError(f"{field}: must be a whole number {limit}, got {_quoted(value)}")
    return int(number)


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and value.isascii() and "_" not in value:
        try:
            return int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            return None
    return None


def name(field: str, value: Any) -> str:
    """Read a name: non-empty text without surrounding white space.

    Whether a version knows the name is the version's business; here only what can never be a name is refused.

    Raises:
        ValueError: the value is not text, is empty or is longer than 300 characters.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST_NAME:
        raise ValueError(
            f"{field}: must be a non-empty text of at most {_LONGEST_NAME} characters, got {_quoted(value)}"
        )
    return value.strip()


NAMES = ("model_name", "method", "gpu_model", "model_version")


def _quoted(value: Any) -> str:
    """The value as Python writes it, cut so that a message stays one line."""
    try:
        text = ascii(value)
    except Exception as error:
        text = f"<{type(value).__name__} without a repr: {type(error).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _checked(check: Callable[[str, Any], Any], field: str) -> BeforeValidator:
    return BeforeValidator(partial(check, field))


def read(field: str, value: Any) -> Any:
    """Read the value of a field of a job: a name or a whole number, whichever the field takes.

    Raises:
        ValueError: it cannot be one; the message names the field.

    >>> read("method", " lora "), read("batch_size", "8")
    ('lora', 8)
    """
    return name(field, value) if field in NAMES else whole_number(field, value)


def _optional_version(value: Any) -> str | None:
    return None if value is None else name("model_version", value)


class Workload(BaseModel):
    """A tuning job: supervised fine-tuning of one model with one method on one type of GPU.

    >>> job = Workload.parse(
    ...     model_name="llama-7b", method="lora", gpu_model="L40S", tokens_per_sample="2048", batch_size=8.0
    ... )
    >>> job.tokens_per_sample, job.max_gpus
    (2048, 8)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: Annotated[str, _checked(name, "model_name")] = Field(
        description="Model to tune: a name of the version's domain such as llama-7b, or a Hugging Face id of one"
    )
    method: Annotated[str, _checked(name, "method")] = Field(description="Tuning method: full or lora")
    gpu_model: Annotated[str, _checked(name, "gpu_model")] = Field(
        description="Type of GPU, named as in the version's domain, such as NVIDIA-A100-80GB-PCIe"
    )
    tokens_per_sample: Annotated[int, _checked(whole_number, "tokens_per_sample")] = Field(
        description="Tokens that each sample is padded or cut to; a whole number >= 1"
    )
    batch_size: Annotated[int, _checked(whole_number, "batch_size")] = Field(
        description="Global batch size: samples per micro-batch over all GPUs; a whole number >= 1"
    )
    model_version: Annotated[str | None, BeforeValidator(_optional_version)] = Field(
        None, description="Version of the predictor, such as 1.1.0"
    )
    gpus_per_worker: Annotated[int, _checked(whole_number, "gpus_per_worker")] = Field(
        8, description="GPUs of one worker (node), at most; a whole number >= 1"
    )
    max_gpus: Annotated[int, _checked(whole_number, "max_gpus")] = Field(
        8, description="Most GPUs to consider, over all workers; a whole number >= 1"
    )
    gradient_accumulation_steps: Annotated[int, _checked(whole_number, "gradient_accumulation_steps")] = Field(
        4,
        description="Micro-batches per optimizer step; a whole number >= 1. With 1, FSDP shards gradients at once, "
        "which decides what fits for large models",
    )

    @classmethod
    def parse(cls, **fields: Any) -> Workload:
        """Validate the fields of a job.

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
