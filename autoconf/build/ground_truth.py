"""The check on the closed form: traces of one rank of an n-GPU FSDP job, of full-depth stacks, and of odd token counts.

``python -m autoconf.build.ground_truth`` compares ``autoconf.memory`` over ``tracer.figures`` with three things that it
was not made from, and fails where they differ by more than a limit:

- ``fsdp``: a rank under ``fully_shard`` (PyTorch's FSDP2) on fake tensors and a fake process group, watched by
  ``FSDPMemTracker``: every all-gather, reduce-scatter and sharded gradient is the real program's;
- ``depth``: the extrapolation from stacks of 2 and 4 layers, against a trace of the whole stack;
- ``tokens``: the lines through two token counts, against a trace at another.

The optimizer's step is in none of them (the tracker counts temporaries of sharded tensors twice), so where the closed
form says that the step is the peak, both sides have it.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoconf.build import tracer
from autoconf.build.architectures import Architecture, architectures
from autoconf.figures import MemoryFigures
from autoconf.memory import BYTES_PER_PARAMETER, MemoryTable

MIB = 2**20
LIMIT_PERCENT = {"fsdp": 3.0, "depth": 1.0, "tokens": 1.0}
# One of each family, and both ways to tie embeddings; 8 layers keep a trace of one rank near a second.
FAMILIES = ["llama-7b", "mistral-7b-v0.1", "granite-3.1-2b", "granite-20b-v2", "granite-3.1-3b-a800m-instruct"]
STACK = 8
SMALL, LARGE = 2_048, 32_768  # tokens per GPU: the peak is in a decoder layer, or at the logits


@dataclass(frozen=True)
class Job:
    """One comparison. ``layers=None`` keeps the architecture's own depth."""

    check: Literal["fsdp", "depth", "tokens"]
    model_name: str
    method: tracer.Method
    accumulating: bool
    gpus: int
    samples: int  # per GPU and micro-batch
    tokens_per_sample: int
    layers: int | None = STACK

    @property
    def tokens(self) -> int:
        """Tokens per GPU and micro-batch."""
        return self.samples * self.tokens_per_sample

    @property
    def architecture(self) -> Architecture:
        architecture = architectures()[self.model_name]
        if self.layers is None:
            return architecture
        return architecture.model_copy(update={"config": {**architecture.config, architecture.depth_key: self.layers}})


@dataclass(frozen=True)
class Comparison:
    """Peaks per GPU of one job, in bytes."""

    job: Job
    closed_form: float
    trace: float

    @property
    def difference_percent(self) -> float:
        return 100 * (self.closed_form / self.trace - 1)

    @property
    def within_limit(self) -> bool:
        return abs(self.difference_percent) <= LIMIT_PERCENT[self.job.check]


def all_jobs() -> list[Job]:
    """Every comparison: about five minutes on two cores."""
    return [*_fsdp_jobs(), *_whole_jobs(), *_depth_jobs(), *_token_jobs()]


def quick_jobs() -> list[Job]:
    """A few comparisons of every kind, of short stacks, for the test suite."""
    return [
        Job("fsdp", "llama-7b", "full", True, gpus=2, samples=1, tokens_per_sample=LARGE, layers=4),
        Job("fsdp", "llama-7b", "full", False, gpus=4, samples=1, tokens_per_sample=SMALL, layers=4),
        Job("fsdp", "mistral-7b-v0.1", "lora", True, gpus=2, samples=4, tokens_per_sample=SMALL, layers=4),
        Job("fsdp", "granite-20b-v2", "lora", False, gpus=4, samples=1, tokens_per_sample=LARGE, layers=4),
        Job(
            "fsdp", "granite-3.1-3b-a800m-instruct", "full", True, gpus=8, samples=1, tokens_per_sample=SMALL, layers=4
        ),
        Job("depth", "granite-3.1-2b", "lora", True, gpus=1, samples=1, tokens_per_sample=3_001, layers=None),
        Job("tokens", "llama-7b", "full", False, gpus=1, samples=1, tokens_per_sample=777),
    ]


def _fsdp_jobs() -> Iterator[Job]:
    for name in FAMILIES:
        for method in ("full", "lora"):
            for accumulating in (True, False):
                for gpus in (2, 4, 8):
                    for tokens in (SMALL, LARGE):
                        yield Job("fsdp", name, method, accumulating, gpus, 1, tokens)
            yield Job("fsdp", name, method, True, 2, 4, SMALL)


def _whole_jobs() -> Iterator[Job]:
    """Ranks of jobs at full depth, one of which is the README's example."""
    yield Job("fsdp", "llama-7b", "lora", True, gpus=2, samples=8, tokens_per_sample=8_192, layers=None)
    yield Job("fsdp", "mistral-7b-v0.1", "full", True, gpus=2, samples=4, tokens_per_sample=8_192, layers=None)
    yield Job("fsdp", "granite-3.1-2b", "full", False, gpus=8, samples=1, tokens_per_sample=SMALL, layers=None)


def _depth_jobs() -> Iterator[Job]:
    for name in ("llama-7b", "granite-3.1-2b", "granite-20b-v2"):
        for method in ("full", "lora"):
            for accumulating in (True, False):
                yield Job("depth", name, method, accumulating, 1, 1, 3_001, layers=None)


def _token_jobs() -> Iterator[Job]:
    chance = random.Random(0)
    for name in FAMILIES:
        for method in ("full", "lora"):
            for accumulating in (True, False):
                tokens = round(2 ** chance.uniform(8, 17))
                yield Job("tokens", name, method, accumulating, 1, 1, tokens)


def compare(job: Job) -> Comparison:
    """Compare the closed form with a trace; a second or so, several at full depth."""
    figures = _figures(job.model_name, job.layers, job.method, job.accumulating)
    row = np.array([0])
    closed_form = MemoryTable([figures]).peak_bytes(row, gpus=np.array([job.gpus]), tokens=np.array([job.tokens]))
    if job.check == "fsdp":
        traced = fsdp_peak_bytes(job)
    else:
        traced = _resident_bytes(figures) + tracer.peak_bytes(
            job.architecture, job.method, tokens=job.tokens, accumulating=job.accumulating
        )
    return Comparison(job, float(closed_form[0]), max(traced, _step_bytes(figures, job.gpus)))


@cache
def _figures(name: str, layers: int | None, method: tracer.Method, accumulating: bool) -> MemoryFigures:
    architecture = Job("fsdp", name, method, accumulating, 1, 1, 1, layers).architecture
    return tracer.figures(architecture, method, accumulating=accumulating)


def _resident_bytes(figures: MemoryFigures) -> int:
    """Weights, AdamW's two states and, when accumulating, earlier gradients of a job on one GPU."""
    states = 3 if figures.accumulating else 2
    return BYTES_PER_PARAMETER * (figures.parameters + states * figures.trainable_parameters)


def _step_bytes(figures: MemoryFigures, gpus: int) -> float:
    """The optimizer's step: weights, two states, gradients and as much again in temporaries, all sharded."""
    return BYTES_PER_PARAMETER * (figures.parameters + 4 * figures.trainable_parameters) / gpus


def fsdp_peak_bytes(job: Job) -> float:
    """Peak of one rank during forward and backward passes, bytes, as ``FSDPMemTracker`` sees it.

    With accumulation it is that of the second micro-batch, under ``no_sync``, or of the last, which reduces the
    gradients: whichever is larger. The tracker watches one micro-batch at a time because its hooks keep the input of
    the first decoder layer alive for as long as they exist where that is a leaf (PEFT makes it one), and it has to be
    shown the gradients that are there when it starts: it would find the sharded ones only.
    """
    model = tracer.build_model(job.architecture, job.method)
    with _rank(job.gpus) as mesh, FakeTensorMode():
        tracer._fake(model)
        _shard(model, mesh)
        optimizer = _optimizer(model)
        synced = (False, False, True) if job.accumulating else (True,)
        peaks = []
        for reduces in synced:
            _as_fsdp(model).set_requires_gradient_sync(reduces)
            tracker = FSDPMemTracker(model, optimizer)
            tracker.track_inputs(_whole_gradients(model))
            with tracker:
                _micro_batch(model, job)
            peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return float(max(peaks))


@contextmanager
def _rank(gpus: int) -> Iterator[DeviceMesh]:
    """Be rank 0 of a job whose other ranks, and whose collectives, do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        yield init_device_mesh("cpu", (gpus,))
    finally:
        dist.destroy_process_group()


def _shard(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """FULL_SHARD, one unit per decoder layer plus the root."""
    for layer in tracer.decoder_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _as_fsdp(module: torch.nn.Module) -> FSDPModule:
    if not isinstance(module, FSDPModule):
        raise TypeError(f"{type(module).__name__} is not sharded")
    return module


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with the state that it has after its first step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, foreach=True)
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _whole_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """The gradients that ``no_sync`` left unsharded."""
    gradients = []
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                whole: Iterable[Any] = (getattr(p, "_unsharded_param", None) for p in group.fsdp_params)
                gradients += [p.grad for p in whole if p is not None and p.grad is not None]
    return tuple(gradients)


def _micro_batch(model: torch.nn.Module, job: Job) -> None:
    input_ids = torch.empty((job.samples, job.tokens_per_sample), dtype=torch.long)
    # The outputs go out of scope before backward, as in the Trainer: logits are a third of a peak.
    loss = model(input_ids=input_ids, labels=torch.empty_like(input_ids)).loss
    loss.backward()


def write(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write comparisons as CSV, peaks in MiB per GPU."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(_row(comparisons[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(comparison) for comparison in comparisons)


def _row(comparison: Comparison) -> dict[str, str | int | bool]:
    job = comparison.job
    return {
        "check": job.check,
        "architecture": job.model_name,
        "layers": job.architecture.layers,
        "method": job.method,
        "gpus": job.gpus,
        "accumulating": job.accumulating,
        "samples_per_gpu": job.samples,
        "tokens_per_gpu": job.tokens,
        "closed_form_mib": round(comparison.closed_form / MIB),
        "trace_mib": round(comparison.trace / MIB),
        "difference_percent": f"{comparison.difference_percent:.2f}",
        "limit_percent": f"{LIMIT_PERCENT[job.check]:g}",
    }


def _print(comparisons: Sequence[Comparison], console: Console) -> None:
    table = Table(title="Peak per GPU: closed form against traces")
    for column in _row(comparisons[0]):
        table.add_column(column.replace("_", " "), justify="right" if column.endswith(("mib", "percent")) else "left")
    for comparison in comparisons:
        style = None if comparison.within_limit else "bold red"
        table.add_row(*(str(value) for value in _row(comparison).values()), style=style)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and return 1 if a limit is exceeded, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few comparisons of every kind, under 40 s")
    parser.add_argument("--output", type=Path, help="write the comparisons to this CSV file")
    options = parser.parse_args(arguments)
    console = Console()
    jobs = quick_jobs() if options.quick else all_jobs()
    with warnings.catch_warnings():
        # Deprecated names inside transformers itself.
        warnings.simplefilter("ignore", FutureWarning)
        comparisons = [compare(job) for job in track(jobs, "Tracing", console=console)]
    _print(comparisons, console)
    if options.output is not None:
        write(comparisons, options.output)
    missed = sum(not comparison.within_limit for comparison in comparisons)
    console.print(f"{len(comparisons) - missed} of {len(comparisons)} comparisons are within their limit")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
