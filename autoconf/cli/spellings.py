"""The names of the options for job fields: the field's own name, and the names in other tools."""

from __future__ import annotations

from autoconf.jobs.job import BATCHES, Workload
from autoconf.jobs.queries import NUMBER_GPUS, Query

# Every option may also be written with _ for -. A name is listed only if it means the same in all tools: "global batch
# size" includes gradient accumulation in some tools, but batch_size never does.
_OTHER_NAMES = {
    "model_name": (
        "-m", "--model", "--model-id", "--model-name-or-path", "--pretrained-model-name-or-path", "--base-model",
    ),
    "method": ("--finetuning-type", "--tuning-method", "--peft-method"),
    "gpu_model": ("-g", "--gpu", "--gpu-type", "--gpu-name", "--accelerator"),
    "tokens_per_sample": (
        "--tokens", "--seq-len", "--seq-length", "--sequence-len", "--sequence-length", "--max-length", "--max-len",
        "--max-seq-len", "--max-seq-length", "--max-sequence-length", "--model-max-length", "--cutoff-len",
        "--context-length",
    ),
    "per_device_train_batch_size": (
        "--per-device-batch-size", "--per-gpu-batch-size", "--per-gpu-train-batch-size", "--micro-batch-size",
        "--train-micro-batch-size-per-gpu",
    ),
    "batch_size": ("-b", "--batch"),
    "gpus_per_worker": ("--gpus-per-node", "--nproc-per-node", "--num-gpus-per-node"),
    "max_gpus": ("--max-num-gpus", "--maximum-gpus"),
    "gradient_accumulation_steps": (
        "--gas", "--accumulation", "--accumulation-steps", "--grad-accum", "--grad-accum-steps",
        "--grad-accumulation-steps", "--gradient-accumulation", "--accumulate-grad-batches",
    ),
    "stack": ("--training-stack", "--trainer", "--framework"),
    "optim": ("--optimizer", "--optimiser"),
    "torch_dtype": ("--dtype",),
    "mixed_precision": ("--precision", "--amp"),
    "gradient_checkpointing": ("--checkpointing", "--activation-checkpointing", "--grad-checkpointing"),
    "sharding": ("--parallelism", "--strategy"),
    "lora_r": ("-r", "--rank", "--lora-rank"),
    "lora_targets": ("--target-modules", "--lora-target-modules", "--lora-target"),
    "lora_layers": ("--layers-to-transform", "--lora-layers-to-transform"),
    "trained_modules": ("--modules-to-save", "--lora-modules-to-save"),
    "model_version": ("--predictor-version",),
    "epochs": ("--num-train-epochs", "--num-epochs"),
    "steps": ("--max-steps", "--num-steps"),
    NUMBER_GPUS: ("-n", "--gpus", "--num-gpus", "--n-gpus", "--ngpus", "--number-of-gpus", "--world-size"),
}  # fmt: skip

_GLOBAL_BATCH = (
    "batch_size does not include gradient accumulation: give --per-device-train-batch-size, or as --batch-size the "
    "samples of one micro-batch over all GPUs"
)
_NODES = "count GPUs instead of nodes: give the GPUs of all nodes, and those of one node as --gpus-per-worker"
_DTYPES = "give --mixed-precision bf16 for autocast, --torch-dtype bfloat16 for weights in bfloat16"
# Options of other tools, with what to use instead.
_INSTEAD = {
    **dict.fromkeys(("--global-batch-size", "--train-batch-size", "--effective-batch-size"), _GLOBAL_BATCH),
    **dict.fromkeys(("--nodes", "--nnodes", "--num-nodes", "--workers", "--num-workers", "--num-machines"), _NODES),
    **dict.fromkeys(("--bf16", "--fp16", "--half"), _DTYPES),
    **{f"--{method}": f"give --method {method}" for method in ("full", "lora", "qlora")},
    **dict.fromkeys(("--use-lora", "--use-peft"), "give --method lora or --method qlora"),
    **dict.fromkeys(("--load-in-4bit", "--4bit"), "give --method qlora"),
    **dict.fromkeys(("--fsdp", "--ddp", "--deepspeed", "--zero"), "give --sharding ddp, fsdp1 or fsdp2"),
}


def own_name(field: str) -> str:
    """The option with the name of a field.

    >>> own_name("gpu_model")
    '--gpu-model'
    """
    return f"--{field.replace('_', '-')}"


def names(field: str) -> tuple[str, ...]:
    """All names of a field's option, starting with its own name.

    >>> names("batch_size")
    ('--batch-size', '-b', '--batch')
    """
    return own_name(field), *_OTHER_NAMES.get(field, ())


def advice(query: Query) -> dict[str, str]:
    """The advice for options that the command of a query does not have.

    >>> from autoconf.jobs.queries import LARGEST_SAMPLE, MIN_GPUS
    >>> advice(LARGEST_SAMPLE)["--seq-len"]
    'tokens_per_sample is the output of this command; omit it'
    >>> advice(MIN_GPUS)["--gpus"]
    'the number of GPUs is the output of this command; --max-gpus limits it'
    """
    others = [field for field in (*Workload.model_fields, NUMBER_GPUS) if field not in query.fields]
    return {**_INSTEAD, **{name: _why_not(field, query) for field in others for name in names(field)}}


def _why_not(field: str, query: Query) -> str:
    if field in query.answered:
        return f"{field} is the output of this command; omit it"
    if field == NUMBER_GPUS:
        return "the number of GPUs is the output of this command; --max-gpus limits it"
    if field in BATCHES:
        return f"give {' or '.join(map(own_name, query.batches))} instead"
    return f"{field} makes no difference to this command; omit it"
