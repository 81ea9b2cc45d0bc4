"""Replay jobs near the edge of a GPU's memory of which it is known whether they ran, and print a table.

``python -m autoconf.pipeline.replay.known_runs`` takes about ten minutes on two cores. Words select runs:
``python -m autoconf.pipeline.replay.known_runs mistral lora`` replays those whose names have both.
"""

from __future__ import annotations

import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures, gpu_types
from autoconf.pipeline.replay.judge import Verdict, judge, overhead_gib
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.report import markdown, with_words
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup


@dataclass(frozen=True)
class KnownRun:
    """A run whose job can be stated; memory in GiB.

    Args:
        name: of the run.
        model: architecture.
        method: of tuning.
        batches: of each GPU.
        ran: whether it ran to the end.
        gpus: how many.
        settings: of the stack; the rest is the reference stack.
        vocabulary: where it is not the model's own.
        allocated_gib: the most that torch.cuda.max_memory_allocated was; ``None`` where that was not told.
        in_use_gib: the most that nvidia-smi read, cache and context included.
        gpu: type of the GPU.
    """

    name: str
    model: str
    method: Method
    batches: Batches
    ran: bool
    gpus: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: int | None = None
    allocated_gib: float | None = None
    in_use_gib: float | None = None
    gpu: str = "NVIDIA-A100-SXM4-80GB"

    @property
    def job(self) -> TrainingSetup:
        architecture = architectures()[self.model]
        if self.vocabulary:
            config = {**architecture.config, "vocab_size": self.vocabulary}
            architecture = architecture.model_copy(update={"config": config})
        stack = Stack(**self.settings, gradient_accumulation=self.batches.accumulation > 1)
        return TrainingSetup(architecture, self.method, stack, self.gpus)


# fms-acceleration's benchmarks (scripts/benchmarks/refs/a100_80gb, torch 2.4.1): reentrant checkpoints, one more token
# for padding, LoRA on attention with PEFT's float32 adapters.
_BENCHMARK: dict[str, Any] = {"gradient_checkpointing": "reentrant"}
_LORA = {
    **_BENCHMARK,
    "adapter_dtype": "float32",
    "lora_r": 16,
    "lora_dropout": 0.1,
    "lora_targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
# Liger-Kernel's examples/huggingface without its kernels: FSDP1 with bf16 mixed precision, hence float32 parameters in
# shards. FSDP2 is replayed for comparison.
_LIGER = {"mixed_precision": "bf16", "sharding": "fsdp1"}
_LIGER_FSDP2 = {**_LIGER, "sharding": "fsdp2"}

# The report has rank, targets and sizes; the rest is taken as LLaMA-Factory's defaults: adapters in float32 under bf16,
# reentrant checkpoints.
_FACTORY = {
    "mixed_precision": "bf16",
    "gradient_checkpointing": "reentrant",
    "adapter_dtype": "float32",
    "lora_r": 8,
    "lora_targets": "all-linear",
}
_TRITON = {**_BENCHMARK, "kernels": ("fast_loss", "fast_rms_layernorm", "fast_rope_embeddings")}
# simplescaling/s1, train/sft_multinode.sh: bf16 under FSDP1; parameters in float32.
_S1 = {"torch_dtype": "float32", "mixed_precision": "bf16", "sharding": "fsdp1"}

RUNS = (
    KnownRun("granite-3.1-8b full, 4,096 x 1, accumulation 2", "granite-3.1-8b-instruct", "full",
             Batches(1, 4096, 2), True),
    KnownRun("mistral-7b full, 4,096 x 4", "mistral-7b-v0.1", "full", Batches(4, 4096), True,
             settings=_BENCHMARK, vocabulary=32001, allocated_gib=67.46, in_use_gib=75.45),
    KnownRun("mistral-7b full, 4,096 x 8", "mistral-7b-v0.1", "full", Batches(8, 4096), True,
             settings=_BENCHMARK, vocabulary=32001, allocated_gib=67.46, in_use_gib=71.28),
    KnownRun("mistral-7b LoRA r 16, 4,096 x 4", "mistral-7b-v0.1", "lora", Batches(4, 4096), True,
             settings=_LORA, vocabulary=32001, allocated_gib=24.87, in_use_gib=28.88),
    KnownRun("mistral-7b LoRA r 16, 4,096 x 8", "mistral-7b-v0.1", "lora", Batches(8, 4096), True,
             settings=_LORA, vocabulary=32001, allocated_gib=36.08, in_use_gib=42.22),
    KnownRun("llama3.2-3b full, 8,192 x 4", "llama3.2-3b", "full", Batches(4, 8192), True),
    KnownRun("llama3.2-3b full, 2,048 x 16", "llama3.2-3b", "full", Batches(16, 2048), True),
    KnownRun("llama3.2-3b full, 512 x 64", "llama3.2-3b", "full", Batches(64, 512), True),
    KnownRun("llama3.2-3b full, 512 x 64, accumulation 4", "llama3.2-3b", "full", Batches(64, 512, 4), True),
    KnownRun("Llama-3-8B full, 4 GPUs, FSDP1, 512 x 48 on each", "llama3-8b", "full", Batches(48, 512), True, 4,
             settings=_LIGER, allocated_gib=66.9),
    KnownRun("Qwen2-7B full, 4 GPUs, FSDP1, 512 x 48 on each", "qwen2.5-7b", "full", Batches(48, 512), False, 4,
             settings=_LIGER),
    KnownRun("Llama-3-8B full, 4 GPUs, FSDP1, 512 x 32 on each", "llama3-8b", "full", Batches(32, 512), True, 4,
             settings=_LIGER, allocated_gib=52.8),
    KnownRun("Llama-3-8B, the same 512 x 48 under FSDP2", "llama3-8b", "full", Batches(48, 512), True, 4,
             settings=_LIGER_FSDP2, allocated_gib=66.9),
    KnownRun("Qwen2-7B, the same 512 x 48 under FSDP2", "qwen2.5-7b", "full", Batches(48, 512), False, 4,
             settings=_LIGER_FSDP2),
    KnownRun("mistral-7b full, Triton kernels, 4,096 x 16", "mistral-7b-v0.1", "full", Batches(16, 4096), False,
             settings=_TRITON, vocabulary=32001),
    KnownRun("Llama-3-8B LoRA r 8 all-linear, 8,192 x 4", "llama3-8b", "lora", Batches(4, 8192), False,
             settings=_FACTORY),
    KnownRun("Qwen2.5-32B full, 16 H100, FSDP1, 20,000 x 1", "qwen2.5-32b", "full", Batches(1, 20000), True, 16,
             settings=_S1, gpu="NVIDIA-H100-80GB-HBM3"),
)  # fmt: skip


def replayed(run: KnownRun) -> Verdict:
    """What the replay says of a run."""
    gpu = gpu_types()[run.gpu]
    with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
        program = record(run.job, run.batches, compute_capability=int(gpu.compute_capability))
    return judge(program, gpu.usable_gib, overhead_gib(run.gpus, run.gpu))[0]


def row(run: KnownRun, found: Verdict) -> dict[str, Any]:
    """A line of the table."""
    measured = [f"{gib:g}" if gib else "-" for gib in (run.allocated_gib, run.in_use_gib)]
    verdicts = {True: "ran", False: "out of memory"}
    return {
        "run": run.name,
        "measured: allocated / in use": " / ".join(measured),
        "allocated": f"{found.peak_memory_gib:.2f}",
        "reserved without limit": f"{found.peak_reserved_gib:.2f}",
        "least capacity": f"{found.least_capacity_gib:.2f}",
        "needed": f"{found.needed_memory_gib:.2f}",
        "with expandable segments": f"{found.expandable_segments_gib:.2f}",
        "replay says": "runs" if found.fits else "does not run",
        "happened": verdicts[run.ran],
    }


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Words that the names of runs have.")] = None,
) -> None:
    """Replay runs and print the table."""
    console = Console(stderr=True)
    rows = []
    for run in with_words("run", RUNS, words):
        console.print(f"replaying {run.name}")
        rows.append(row(run, replayed(run)))
    typer.echo(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
