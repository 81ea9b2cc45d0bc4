"""Replay public out-of-memory reports, and compare with what PyTorch printed.

``python -m autoconf.pipeline.replay.reports`` replays the reports of ``reports.yaml`` one after another, about a minute
for each stack; words select reports: ``... reports alpaca 13b``. A report rarely states its whole stack. It is replayed
on all stacks that it allows, and the figures are the smallest and the largest over those that run out of memory.

The GPU of a replay has as much memory as PyTorch had at the failure: what it had reserved, and what CUDA had free.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from autoconf.jobs.stack import Stack
from autoconf.memory.allocator_settings import MIB
from autoconf.memory.replay import Program, Replayed, replay
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.replay import loading
from autoconf.pipeline.replay.record import UPDATES, Batches, record
from autoconf.pipeline.report import markdown, with_words
from autoconf.pipeline.tracing import fsdp_units
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup


class Message(BaseModel):
    """What PyTorch's error says. Older releases give what is reserved instead of "reserved but unallocated"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tried_mib: float
    allocated_gib: float
    unallocated_gib: float = Field(description="reserved by PyTorch but unallocated")
    free_gib: float = Field(description="free memory of the GPU that CUDA reports")

    @property
    def capacity_gib(self) -> float:
        """What PyTorch could reserve at most."""
        return self.allocated_gib + self.unallocated_gib + self.free_gib


class Job(BaseModel):
    """A job as its report states it; ``open`` has the values that it allows for settings that it does not state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    method: Method
    gpus: int = 1
    samples: int
    tokens: tuple[int, ...] = Field(description="tokens per sample that the report allows")
    accumulation: tuple[int, ...] = (1,)
    stack: dict[str, Any] = {}
    open: dict[str, tuple[Any, ...]] = {}
    config: dict[str, Any] = Field(default={}, description="where the architecture differs from the model's")
    only_loaded: bool = Field(default=False, description="whether the job died before its first step")
    use_orig_params: bool = Field(default=True, description="FSDP1's argument; off in the Trainer of 2023")


class Report(BaseModel):
    """A public report: replayed if it has a job, otherwise listed with the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    message: Message
    job: Job | None = None
    assumed: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """The replay of one stack: figures at the failure, or no place if it runs to the end."""

    tried_mib: float
    allocated_gib: float
    unallocated_gib: float
    place: str


def reports() -> list[Report]:
    """The reports of ``reports.yaml``.

    >>> all(one.job or one.reason for one in reports())
    True
    """
    text = (files(__package__) / "reports.yaml").read_text(encoding="utf-8")
    return [Report(**one) for one in yaml.safe_load(text)]


def stacks(report: Report) -> Iterator[tuple[TrainingSetup, Batches]]:
    """Yield each job that a report allows."""
    job = report.job
    assert job is not None
    known = architectures()[job.model]
    architecture = known.model_copy(update={"config": {**known.config, **job.config}})
    for values in itertools.product(*job.open.values()):
        chosen = dict(zip(job.open, values, strict=True))
        for tokens, accumulation in itertools.product(job.tokens, job.accumulation):
            stack = Stack(**{**job.stack, **chosen}, gradient_accumulation=accumulation > 1)
            # The second micro-batch finds the gradients of the first; a third one would find the same.
            batches = Batches(job.samples, tokens, min(accumulation, 2))
            # Under NO_SHARD a second GPU changes nothing on the first one.
            gpus = max(job.gpus, 2) if stack.sharding == "fsdp1" else job.gpus
            yield TrainingSetup(architecture, job.method, stack, gpus), batches


def replayed(report: Report) -> list[Outcome | None]:
    """Replay a report on all stacks that it allows; ``None`` for a stack that runs to the end."""
    assert report.job is not None
    outcomes: list[Outcome | None] = []
    for job, batches in stacks(report):
        with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"), _fsdp1(report.job), _no_warmup():
            program = record(job, batches, updates=0 if report.job.only_loaded else UPDATES)
        found = replay(program, int(report.message.capacity_gib * GIB))
        outcomes.append(_outcome(program, found))
    return outcomes


def _fsdp1(job: Job) -> AbstractContextManager[Any]:
    """FSDP1 with the arguments of a job: without ``use_orig_params`` the optimizer has one parameter for each unit."""
    given: dict[str, Any] = {"use_orig_params": job.use_orig_params}
    if job.gpus == 1:  # torch/distributed/fsdp/_init_utils.py: a single GPU switches to NO_SHARD
        given["sharding_strategy"] = ShardingStrategy.NO_SHARD

    class Given(FullyShardedDataParallel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, **given})

    return mock.patch.object(fsdp_units, "FullyShardedDataParallel", Given)


def _no_warmup() -> AbstractContextManager[Any]:
    """Load without one block for all weights, as transformers did before release 4.50: the reports are older."""
    return mock.patch.object(loading, "_warm_up", lambda *_: None)


def _outcome(program: Program, found: Replayed) -> Outcome | None:
    failure = found.failure
    if failure is None or found.failed_at is None:
        return None
    unallocated = failure.reserved - failure.allocated
    place = program.place(found.failed_at)
    where = f"{place.when}, {place.part}, {place.op}"
    return Outcome(failure.tried / MIB, failure.allocated / GIB, unallocated / GIB, where)


@dataclass(frozen=True)
class Comparison:
    """A report next to its replays."""

    report: Report
    outcomes: Sequence[Outcome | None]

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome is not None]

    def bounds(self, figure: str) -> tuple[float, float]:
        """The smallest and the largest of a figure over the stacks that run out of memory."""
        values = [getattr(outcome, figure) for outcome in self.failures]
        return min(values), max(values)

    def off(self, figure: str) -> float:
        """By how much what PyTorch printed lies outside of the bounds, in their unit; 0 inside."""
        low, high = self.bounds(figure)
        printed = getattr(self.report.message, figure)
        return max(low - printed, printed - high, 0.0)

    def row(self) -> dict[str, Any]:
        """A line of the table."""
        message = self.report.message
        cells = {"report": f"[{self.report.name}]({self.report.source})"}
        for title, figure, digits in _FIGURES:
            cells[f"{title}: printed"] = f"{getattr(message, figure):.{digits}f}"
            cells["replayed" + " " * len(cells)] = self._range(figure, digits)
        places = dict.fromkeys(outcome.place for outcome in self.failures)
        return {
            **cells,
            "stacks that fail": f"{len(self.failures)} of {len(self.outcomes)}",
            "where": "; ".join(places) or "-",
        }

    def _range(self, figure: str, digits: int) -> str:
        if not self.failures:
            return "-"
        low, high = (f"{value:.{digits}f}" for value in self.bounds(figure))
        return low if low == high else f"{low} to {high}"


_FIGURES = (
    ("tried, MiB", "tried_mib", 0),
    ("allocated, GiB", "allocated_gib", 2),
    ("unallocated, GiB", "unallocated_gib", 2),
)


def summary(compared: Sequence[Comparison]) -> str:
    """How far the printed figures lie outside of the replayed bounds."""
    failing = [one for one in compared if one.failures]
    lines = [f"{len(failing)} of {len(compared)} reports run out of memory in a replay of some stack."]
    for title, figure, digits in _FIGURES if failing else ():
        off = [one.off(figure) for one in failing]
        inside = sum(value < 10**-digits for value in off)
        lines.append(
            f"{title}: {inside} printed figures are within the bounds, the median is {np.median(off):.{digits}f} "
            f"outside, the largest {max(off):.{digits}f}."
        )
    return "\n".join(lines)


def not_replayed(listed: Sequence[Report]) -> list[dict[str, Any]]:
    """A line for each report that cannot be replayed."""
    return [
        {
            "report": f"[{one.name}]({one.source})",
            "tried, MiB": f"{one.message.tried_mib:g}",
            "allocated, GiB": f"{one.message.allocated_gib:g}",
            "unallocated, GiB": f"{one.message.unallocated_gib:.2f}",
            "why it is not replayed": one.reason,
        }
        for one in listed
    ]


def main(
    words: Annotated[list[str] | None, typer.Argument(help="Words that the names of reports have.")] = None,
) -> None:
    """Replay reports and print the tables."""
    chosen = with_words("report", reports(), words)
    console = Console(stderr=True)
    compared = []
    for report in chosen:
        if report.job is not None:
            console.print(f"replaying {report.name}", soft_wrap=True)
            compared.append(Comparison(report, replayed(report)))
    if compared:
        typer.echo(markdown([one.row() for one in compared]))
        typer.echo(f"\n{summary(compared)}\n")
    listed = [one for one in chosen if one.job is None]
    if listed:
        typer.echo(markdown(not_replayed(listed)))


if __name__ == "__main__":
    typer.run(main)
