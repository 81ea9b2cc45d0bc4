"""Replay public out-of-memory reports, and compare with what PyTorch printed.

``python -m autoconf.pipeline.replay.reports`` replays the reports of ``reports.yaml`` one after another, about a minute
for each stack; words select reports: ``... reports alpaca 13b``. What is found is kept in ``report_replays.csv``, and
``--show`` prints all of it without a replay. A report rarely states its whole stack. It is replayed on all stacks that
it allows, and the figures are the smallest and the largest over those that run out of memory.

The GPU of a replay has as much memory as PyTorch had at the failure: what it had reserved, and what CUDA had free.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib.resources import files
from typing import Annotated, Any
from unittest import mock

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch.distributed.fsdp import ShardingStrategy

from autoconf.jobs.stack import Stack
from autoconf.memory.allocator_settings import MIB
from autoconf.memory.replay import Program, Replayed, replay
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.replay import loading
from autoconf.pipeline.replay.given import eager_attention, fsdp1_arguments, shifted_logits
from autoconf.pipeline.replay.record import UPDATES, Batches, record
from autoconf.pipeline.replay.report_table import Comparison, Found, Message, Outcome, keep, kept, summary
from autoconf.pipeline.report import markdown, with_words
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup


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
    prefetches: bool = Field(default=True, description="whether FSDP1's backward pass gathers the next unit early")
    shifts_logits: bool = Field(default=False, description="the loss of transformers 4.46 to 4.48, which copies logits")
    eager: bool = Field(default=False, description="attention that holds scores of all pairs of tokens")


class Report(BaseModel):
    """A public report: replayed if it has a job, otherwise listed with the reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    message: Message
    job: Job | None = None
    assumed: str = ""
    reason: str = ""


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
        # A shorter program is the beginning of a longer one: most reports fail in the first update.
        for updates in (0,) if report.job.only_loaded else (1, UPDATES):
            with (
                redirect_stdout(sys.stderr),
                warnings.catch_warnings(action="ignore"),
                as_given(report.job),
                _no_warmup(),
            ):
                program = record(job, batches, updates=updates, loading=job.stack.loading)
            found = replay(program, int(report.message.capacity_gib * GIB))
            if found.failure is not None:
                break
        outcomes.append(_outcome(program, found))
    return outcomes


@contextmanager
def as_given(job: Job) -> Iterator[None]:
    """Record with the attention, the loss and the arguments of FSDP1 that a job has.

    Without ``use_orig_params`` the optimizer has one parameter for each unit.
    """
    given: dict[str, Any] = {"use_orig_params": job.use_orig_params}
    if not job.prefetches:
        given["backward_prefetch"] = None
    if job.gpus == 1:  # torch/distributed/fsdp/_init_utils.py: a single GPU switches to NO_SHARD
        given["sharding_strategy"] = ShardingStrategy.NO_SHARD
    with (
        fsdp1_arguments(**given),
        eager_attention() if job.eager else nullcontext(),
        shifted_logits() if job.shifts_logits else nullcontext(),
    ):
        yield


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
    show: Annotated[bool, typer.Option("--show", help="Print what was found before, and replay nothing.")] = False,
) -> None:
    """Replay reports, keep what is found, and print the tables."""
    chosen = with_words("report", reports(), words)
    found = kept()
    if not show:
        console = Console(stderr=True)
        for report in chosen:
            if report.job is not None:
                console.print(f"replaying {report.name}", soft_wrap=True)
                found[report.source] = Found.of(replayed(report))
        keep({one.source: found[one.source] for one in reports() if one.source in found})
    compared = {
        one.source: Comparison(one.name, one.source, one.message, found[one.source]) for one in chosen if one.job
    }
    if compared:
        typer.echo(markdown([one.row() for one in compared.values()]))
        typer.echo(f"\n{summary(compared.values())}\n")
        stepped = [compared[one.source] for one in chosen if one.job and not one.job.only_loaded]
        if 0 < len(stepped) < len(compared):
            typer.echo(f"Of those that reached a step:\n{summary(stepped)}\n")
    listed = [one for one in chosen if one.job is None]
    if listed:
        typer.echo(markdown(not_replayed(listed)))


if __name__ == "__main__":
    typer.run(main)
