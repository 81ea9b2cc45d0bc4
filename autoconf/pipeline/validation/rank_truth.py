"""Check ``rank_trace`` against real tensors in real processes, and against whole models.

- ``processes``: the same rank with real tensors on the CPU, one of two processes that communicate through gloo, under
  the real FSDP wrappers, with a small model, because all memory is allocated;
- ``whole``: a trace of the whole model with other numbers of tokens and GPUs, compared with the prediction of short
  stacks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing
import typer
from rich.console import Console
from rich.progress import track

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation import rank_trace

LIMIT_PERCENT = {"processes": 0.5, "whole": 0.5}
_PROCESSES = 2


@dataclass(frozen=True)
class Check:
    """One comparison of a job's peak per GPU."""

    check: Literal["processes", "whole"]
    job: TrainingSetup
    layers: int  # traced layers
    tokens: int  # tokens of each of ``rank_trace.SAMPLES`` samples


@dataclass(frozen=True)
class Result:
    """Peaks per GPU of one check, in bytes, without the optimizer."""

    check: Check
    predicted: float
    measured: float

    @property
    def difference_percent(self) -> float:
        return 100 * (self.predicted / self.measured - 1)

    @property
    def within_limit(self) -> bool:
        return abs(self.difference_percent) <= LIMIT_PERCENT[self.check.check]


def small(architecture: Architecture, layers: int) -> Architecture:
    """Reduce an architecture to a width of 128, small enough for real tensors on a CPU.

    >>> small(architectures()["mistral-7b-v0.1"], layers=4).layers
    4
    """
    config = {
        **architecture.config,
        "hidden_size": 128, "intermediate_size": 448, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, architecture.depth_key: layers,
    }  # fmt: skip
    return architecture.model_copy(update={"config": config})


def all_checks() -> list[Check]:
    """All comparisons; they take two minutes on two cores."""
    return [*_process_checks(), *_whole_checks()]


def quick_checks() -> list[Check]:
    """A few comparisons of each kind for the test suite; together they cover every setting of the processes."""
    processes, whole = list(_process_checks()), list(_whole_checks())
    return [*processes[::5], whole[0]]


def _stacks() -> Iterator[Stack]:
    for sharding in ("fsdp1", "fsdp2"):
        for checkpointing in ("reentrant", "non-reentrant"):
            for accumulating in (False, True):
                yield Stack(
                    sharding=sharding,
                    gradient_checkpointing=checkpointing,
                    gradient_accumulation=accumulating,
                    adapter_dtype="float32" if sharding == "fsdp1" else "bfloat16",
                )


def _process_checks() -> Iterator[Check]:
    architecture = small(architectures()["mistral-7b-v0.1"], layers=4)
    for stack in _stacks():
        for method in ("lora", "full"):
            yield Check("processes", TrainingSetup(architecture, method, stack, _PROCESSES), layers=4, tokens=509)


def _whole_checks() -> Iterator[Check]:
    for name, method in (("granite-3.1-2b", "lora"), ("llama3.1-8b", "full"), ("mistral-7b-v0.1", "qlora")):
        architecture = architectures()[name]
        for stack in (
            Stack(),
            Stack(sharding="fsdp1", gradient_checkpointing="reentrant", gradient_accumulation=False),
        ):
            if method == "qlora":
                stack = stack.model_copy(update={"quantization": "nf4", "mixed_precision": "bf16"})
            for gpus in (1, 8):
                job = TrainingSetup(architecture, method, stack, gpus)  # type: ignore[arg-type]
                yield Check("whole", job, architecture.layers, tokens=1511)


def compare(checks: Sequence[Check]) -> Iterator[Result]:
    """Compare predicted with measured peaks; takes a second to a minute for each check."""
    in_processes = [check for check in checks if check.check == "processes"]
    for check, measured in zip(in_processes, _peaks_of_processes(in_processes), strict=True):
        yield Result(check, rank_trace.run(check.job, layers=check.layers, tokens=check.tokens).peak_bytes, measured)
    for check in checks:
        if check.check == "whole":
            figures = replace(rank_trace.figures(check.job), states=0, step=0)
            predicted = figures.peak_bytes(rank_trace.SAMPLES * check.tokens, check.job.gpus)
            yield Result(check, predicted, rank_trace.run(check.job, layers=None, tokens=check.tokens).peak_bytes)


def _peaks_of_processes(checks: Sequence[Check]) -> list[int]:
    """Run checks one after the other in the same processes, because starting them takes longer than one check."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_be_a_rank, (checks, folder), nprocs=_PROCESSES)
        return json.loads((Path(folder) / "peaks").read_text())


def _be_a_rank(rank: int, checks: Sequence[Check], folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", _PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=_PROCESSES)
    try:
        traces = [rank_trace.run(check.job, layers=check.layers, tokens=check.tokens, real=True) for check in checks]
    finally:
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "peaks").write_text(json.dumps([trace.peak_bytes for trace in traces]))


def row(result: Result) -> dict[str, Any]:
    """A line of the table: peaks in KiB per GPU."""
    job, stack = result.check.job, result.check.job.stack
    return {
        "check": result.check.check,
        "architecture": job.architecture.name,
        "layers": result.check.layers,
        "method": job.method,
        "sharding": stack.sharding,
        "checkpointing": stack.gradient_checkpointing,
        "accumulating": stack.gradient_accumulation,
        "gpus": job.gpus,
        "tokens_per_gpu": rank_trace.SAMPLES * result.check.tokens,
        "predicted_kib": round(result.predicted / 1024),
        "measured_kib": round(result.measured / 1024),
        "difference_percent": f"{result.difference_percent:.2f}",
        "limit_percent": f"{LIMIT_PERCENT[result.check.check]:g}",
    }


def main(
    quick: Annotated[bool, typer.Option("--quick", help="a few comparisons of each kind, in half a minute")] = False,
    output: Annotated[Path | None, typer.Option(help="write the comparisons to this CSV file")] = None,
) -> None:
    """Run the checks; exit code 1 if a limit is exceeded."""
    console = Console()
    checks = quick_checks() if quick else all_checks()
    results = list(track(compare(checks), "tracing", total=len(checks), console=console))
    rows = pd.DataFrame([row(result) for result in results])
    console.print(rows.to_string(index=False), soft_wrap=True)
    if output is not None:
        rows.to_csv(output, index=False, lineterminator="\n")
    missed = sum(not result.within_limit for result in results)
    console.print(f"{len(results) - missed} of {len(results)} comparisons are within their limit")
    sys.exit(int(missed > 0))


if __name__ == "__main__":
    typer.run(main)
