"""A validated fine-tuning job, and the rules for its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autoconf.jobs.batches import BATCHES as BATCHES
from autoconf.jobs.batches import check_batch as check_batch
from autoconf.jobs.field_errors import no_such, sentence
from autoconf.jobs.lora_layers import ALL, read_layers
from autoconf.jobs.lora_targets import GROUPS, read_targets
from autoconf.jobs.presets import SETTINGS, presets, stack_name, training_stack
from autoconf.jobs.stack import (
    Allocator,
    Attention,
    Checkpointing,
    Dtype,
    GradientSync,
    JobSharding,
    Loading,
    Loss,
    MixedPrecision,
    Objective,
    Offload,
    Optim,
    Quantization,
    Stack,
    TrainedModules,
    Upcast,
)
from autoconf.jobs.trained_modules import read_trained
from autoconf.jobs.values import MOST_HOST_GIB, choice, flag, gibibytes, is_empty, name, share, whole_number

# Answers hold only for this training stack.
TRAINING_STACK = (
    "the stack that the job names (ado-autoconf stacks lists them). By default it is reference: supervised fine-tuning "
    "with transformers and PEFT, parameters, gradients and AdamW's states in bfloat16, FlashAttention, gradient "
    "checkpointing, full logits, LoRA of rank 4, and on several GPUs FSDP full shard"
)

NAMES = ("model_name", "method", "gpu_model", "model_version")
# The fields that decide the training stack.
STACK_FIELDS = ("method", "gradient_accumulation_steps", "stack", *SETTINGS)
TOGETHER = (*BATCHES, *STACK_FIELDS)  # fields that can exclude each other
GPU_MEMORY = "gpu_memory_gib"  # describes a GPU that has no name
IMAGES = "image_tokens"  # among ``tokens_per_sample``
HOST_LIMIT = "host_memory_limit_gib"  # of a worker; ``host_memory_gib`` is an output, what a job takes of it
IN_GIB = (GPU_MEMORY, HOST_LIMIT)
DROPOUT = "lora_dropout"
TARGETS = "lora_targets"  # one of a few groups of modules, or names of modules
LAYERS = "lora_layers"  # all, or numbers of layers
TRAINED = "trained_modules"  # one of a few values, or names of modules
UNNAMED = "unnamed"  # its ``gpu_model``


def read(field: str, value: Any, optional: Mapping[str, Any] | None = None) -> Any:
    """Read the value of a job's field. Python calls, tables, files, options and ado all use this function.

    Args:
        field: the field's name.
        value: the value as the user gave it.
        optional: the fields that may be empty, with their defaults; by default those of a ``Workload``.

    Returns:
        A name, a whole number, a boolean or one of the field's choices; for an empty value the field's default.

    Raises:
        ValueError: the value is invalid, or it is empty and the field has no default; the message names the field.

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
    if field in FLAGS:
        return flag(field, value)
    if field == GPU_MEMORY:
        return gibibytes(field, value)
    if field == HOST_LIMIT:
        return gibibytes(field, value, MOST_HOST_GIB)
    if field == TARGETS:
        return read_targets(field, value)
    if field == LAYERS:
        return read_layers(field, value)
    if field == DROPOUT:
        return share(field, value)
    if field == TRAINED:
        return read_trained(field, value)
    return whole_number(field, value) if field in NUMBERS else choice(field, value, choices(field))


def _describe(what: str, choices: Any) -> str:
    """The description of a setting whose default is the stack's."""
    return f"{what}: {', '.join(get_args(choices))}; by default the stack's"


def with_gpu(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job, in which a GPU that is given by its memory alone has a name.

    >>> with_gpu({"gpu_memory_gib": 24})
    {'gpu_memory_gib': 24, 'gpu_model': 'unnamed'}
    """
    memory = fields.get(GPU_MEMORY)
    unnamed = memory is not None and not is_empty(memory) and is_empty(fields.get("gpu_model"))
    return {**fields, "gpu_model": UNNAMED} if unnamed else dict(fields)


_GPU_MODEL = "GPU type as the version's domain names it, such as NVIDIA-A100-80GB-PCIe; any name with gpu_memory_gib"
_TOKENS = "Tokens that each sample is padded or truncated to; a whole number >= 1"


class Job(BaseModel):
    """A tuning job, possibly without the field that a query answers: GPU type, batch or length of the samples.

    >>> job = Job.parse(model_name="llama-7b", method="lora", tokens_per_sample=2048, batch_size="8", max_gpus="")
    >>> job.gpu_model is None, job.batch_size, "max_gpus" in job.model_fields_set
    (True, 8, False)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_name: str = Field(
        description="Model to tune: a name in the version's domain such as llama-7b, or its Hugging Face id"
    )
    method: str = Field(description="Tuning method: full or lora, and qlora where the version has it")
    gpu_model: str | None = Field(None, description=_GPU_MODEL)
    tokens_per_sample: int | None = Field(None, description=_TOKENS)
    per_device_train_batch_size: int | None = Field(
        None, description="Samples per micro-batch on each GPU, as the Trainer counts them; a whole number >= 1"
    )
    batch_size: int | None = Field(
        None,
        description="Instead of per_device_train_batch_size: samples per micro-batch over all GPUs, without gradient "
        "accumulation; a whole number >= 1",
    )
    model_version: str | None = Field(None, description="Version of the predictor, such as 2.0.0")
    gpus_per_worker: int = Field(8, description="Most GPUs of one worker (node); a whole number >= 1")
    max_gpus: int = Field(8, description="Most GPUs to consider, over all workers; a whole number >= 1")
    gradient_accumulation_steps: int = Field(
        4,
        description="Micro-batches per optimizer step; a whole number >= 1. With 1, FSDP shards gradients at once, "
        "which decides what fits for large models",
    )
    stack: str = Field(
        "reference",
        description="Training stack, by its preset's name, such as reference or trl; ado-autoconf stacks lists them",
    )
    optim: Optim | None = Field(None, description=_describe("Optimizer, as the Trainer names it", Optim))
    torch_dtype: Dtype | None = Field(
        None, description=_describe("Dtype of the loaded parameters, float16 from version 3.0.0", Dtype)
    )
    adapter_dtype: Dtype | None = Field(None, description=_describe("Dtype of LoRA adapters", Dtype))
    mixed_precision: MixedPrecision | None = Field(
        None, description=_describe("Mixed precision (autocast), with fp16 from version 3.0.0", MixedPrecision)
    )
    gradient_checkpointing: Checkpointing | None = Field(
        None,
        description=_describe(
            "Gradient checkpointing of each decoder layer, by torch's variant, or offloaded: with the inputs of the "
            "layers in the host's memory, as by TRL's activation_offloading (known from version 3.0.0)",
            Checkpointing,
        ),
    )
    loss: Loss | None = Field(
        None,
        description=_describe(
            "Cross-entropy over all logits at once, or fused with the head over chunks of tokens", Loss
        ),
    )
    sharding: JobSharding | None = Field(None, description=_describe("Data parallelism over several GPUs", JobSharding))
    lora_r: int | None = Field(None, description="LoRA rank; a whole number >= 1; by default the stack's")
    lora_targets: str | None = Field(
        None,
        description="Modules with LoRA adapters: default (the model's own pair), attention, all-linear, or names of "
        "modules with commas between them, such as q_proj,v_proj (any names from version 3.0.0); by default the "
        "stack's",
    )
    even_layouts: bool = Field(
        False,
        description="Consider only customary layouts: powers of two of GPUs on one worker, or several full workers; "
        "true or false",
    )
    upcast_unquantized: Upcast | None = Field(
        None,
        description=_describe(
            "Parameters of a 4-bit base that are not quantized and become float32 before training (all as by PEFT's "
            "prepare_model_for_kbit_training; norms: all but embeddings and head; known from version 3.0.0)",
            Upcast,
        ),
    )
    offload: Offload | None = Field(
        None,
        description=_describe(
            "What the memory of the host holds: DeepSpeed's offload_optimizer, offload_param (ZeRO-3) or both; FSDP's "
            "cpu_offload is optimizer_and_parameters (known from version 3.0.0)",
            Offload,
        ),
    )
    gpu_memory_gib: float | None = Field(
        None,
        description="Usable memory of each GPU, as CUDA reports it, for a type that is not in the version's domain, or "
        "of which less is usable; GiB from 1 to 1024; known from version 3.0.0",
    )
    host_memory_limit_gib: float | None = Field(
        None,
        description="Most memory that a job may take on the host of one worker (node), for what it offloads and while "
        "it loads; GiB from 1 to 65536, by default any; known from version 3.0.0. Named after its output, "
        "host_memory_gib",
    )
    image_tokens: int | None = Field(None, description="Tokens of images among tokens_per_sample, for a vision tower")
    allocator: Allocator | None = Field(
        None,
        description=_describe(
            "PyTorch's allocator: expandable_segments is PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True (known from "
            "version 3.0.0)",
            Allocator,
        ),
    )
    objective: Objective | None = Field(
        None,
        description=_describe(
            "What is trained: sft, or a loss of TRL, whose samples are pairs for reward, dpo and orpo; dpo_precomputed "
            "is dpo with precompute_ref_log_probs, and grpo the training step without generation, whose samples are a "
            "prompt with a completion (known from version 3.0.0)",
            Objective,
        ),
    )
    quantization: Quantization | None = Field(
        None,
        description=_describe(
            "How the base of qlora is quantized: bitsandbytes' nf4 with or (nf4_single) without double quantization; "
            "from version 3.0.0 on also with experts (transformers 4), int8, or 4 bits in groups of 128 (gptq, awq)",
            Quantization,
        ),
    )
    gradient_sync: GradientSync | None = Field(
        None,
        description=_describe(
            "Micro-batches at which FSDP reduces gradients: last keeps whole gradients until then; every is "
            "accelerate's sync_each_batch (known from version 3.0.0)",
            GradientSync,
        ),
    )
    attention: Attention | None = Field(
        None,
        description=_describe(
            "Attention: FlashAttention-2, PyTorch's own (sdpa; it also runs on GPUs below compute capability 8.0), or "
            "eager, which is refused",
            Attention,
        ),
    )
    loading: Loading | None = Field(
        None,
        description=_describe(
            "Where the weights are before FSDP shards them: in the host's memory (cpu), whole on each GPU (gpu, as "
            "4-bit weights always; known from version 3.0.0), or with the first process of a worker (rank0)",
            Loading,
        ),
    )
    lora_dropout: float | None = Field(
        None, description="Dropout of LoRA adapters, from 0 to less than 1; by default the stack's"
    )
    use_dora: bool | None = Field(
        None, description="Whether adapters are DoRA's, from version 3.0.0; true or false, by default the stack's"
    )
    trained_modules: TrainedModules | None = Field(
        None, description=_describe("Modules trained whole beside adapters, from version 3.0.0", TrainedModules)
    )

    lora_layers: str | None = Field(
        None,
        description="Layers with LoRA adapters, PEFT's layers_to_transform: all, or numbers from 0 on, such as 16-31 "
        "(known from version 3.0.0)",
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        known = cls.model_fields
        return with_gpu({f: v for f, v in fields.items() if f not in known or (v is not None and not is_empty(v))})

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return read(str(info.field_name), value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stack_of(dict(self))
        return self

    @classmethod
    def parse(cls, /, **fields: Any) -> Self:
        """Validate the fields of a job. A field that is empty, as ``is_empty`` defines it, counts as not given.

        Raises:
            ValueError: a field is missing, unknown or invalid, or fields exclude each other; the message names every
                such field.
        """
        names = cls.model_fields
        unknown = [field for field in fields if field not in names]
        problems = [no_such(unknown, Workload.model_fields)] if unknown else []
        try:
            job = cls(**{field: value for field, value in fields.items() if field in names})
        except ValidationError as error:
            problems = [*(sentence(detail, Workload.model_fields) for detail in error.errors()), *problems]
        if problems:
            raise ValueError("; ".join(problems)) from None
        return job

    def training_stack(self) -> Stack:
        """The job's training stack: the settings of its preset, with the job's own settings on top.

        >>> Job(model_name="llama-7b", method="full", loss="chunked").training_stack().loss
        'chunked'
        """
        return stack_of(dict(self))

    def stack_name(self) -> str:
        """The training stack in a few words: the preset and the settings that the job changes."""
        return stack_name(self.method, self.stack, *(getattr(self, field) for field in SETTINGS))


class Workload(Job):
    """A tuning job: supervised fine-tuning of one model with one method on one type of GPU.

    It has either ``per_device_train_batch_size``, the samples per micro-batch on each GPU, or ``batch_size``, the
    samples per micro-batch over all GPUs. Neither includes gradient accumulation.

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


REQUIRED_OF_JOB = tuple(field for field, info in Job.model_fields.items() if info.is_required())
REQUIRED = tuple(field for field, info in Workload.model_fields.items() if info.is_required())
OPTIONAL = {field: info.default for field, info in Workload.model_fields.items() if not info.is_required()}
FLAGS = tuple(field for field, info in Workload.model_fields.items() if info.annotation in (bool, bool | None))
NUMBERS = tuple(
    field for field, info in Workload.model_fields.items() if int in (info.annotation, *get_args(info.annotation))
)


def choices(field: str) -> tuple[str, ...]:
    """The values of a field that is neither a number nor a name.

    >>> choices("loss")
    ('full', 'chunked')
    """
    if field == "stack":
        return tuple(presets())
    if field in (TARGETS, LAYERS):
        return GROUPS if field == TARGETS else (ALL,)
    return tuple(value for part in get_args(Workload.model_fields[field].annotation) for value in get_args(part))


def stack_of(fields: Mapping[str, Any]) -> Stack:
    """The training stack of a job whose fields have been read; absent fields have their defaults.

    Raises:
        ValueError: settings exclude each other; the message names both.
    """
    method, steps, *settings = (fields[f] if f in fields else OPTIONAL[f] for f in STACK_FIELDS)
    return training_stack(method, steps > 1, *settings)


def check_together(fields: Mapping[str, Any]) -> None:
    """Check that the fields of a workload, each valid by itself, do not exclude each other.

    Raises:
        ValueError: a batch is missing, or fields exclude each other; the message names both.

    >>> check_together({"method": "full"})
    Traceback (most recent call last):
    ValueError: batch_size: is required, or per_device_train_batch_size instead
    """
    check_batch(fields)
    stack_of(fields)
