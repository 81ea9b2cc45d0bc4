"""Compare composed memory of random jobs with traces of whole ranks.

The memory model of a version is composed: a ledger of one GPU without sharding, extrapolated to the whole model, with
FSDP's schedule on top (``autoconf.memory.model``). Here the same jobs run under PyTorch's own wrappers
(``rank_trace``): short stacks, which predict any number of tokens and GPUs, or the whole model if these do not apply.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track

from autoconf.jobs.stack import Stack
from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.model import gpu_memory
from autoconf.memory.optimizers import optimizer_bytes
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Unsupported
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.report import VALIDATION, markdown, write_section
from autoconf.pipeline.tracing.first_rank import Load, load_at_once
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup, trainable_shapes
from autoconf.pipeline.tracing.recorder import TraceError
from autoconf.pipeline.validation import rank_trace
from autoconf.pipeline.validation.rank_figures import RankFigures
from autoconf.predictor.registry import MODELS

OUTPUT = Path(__file__).with_name("composition.csv")
LIMIT_PERCENT = 4.0  # FSDP1 holds up to 3.4 % more than its schedule for LoRA without checkpointing
PER_FAMILY = 6
GPUS = (2, 8)
# Tokens of each of ``rank_trace.SAMPLES`` samples: primes that differ from those of the traced profiles.
TOKENS = (509, 4099, 32771)
_SEED = 20261125
# Each setting is drawn independently; repeated values are more likely.
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "sharding": ("fsdp1", "fsdp1", "fsdp2", "fsdp2", "ddp"),
    "optim": ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "adafactor", "sgd"),
    "torch_dtype": ("bfloat16", "bfloat16", "float32"),
    "mixed_precision": ("no", "bf16"),
    "gradient_checkpointing": ("none", "reentrant", "non-reentrant"),
    "loss": ("full", "full", "full", "chunked", "chunked", "chunked_nll"),
    "gradient_accumulation": (False, True),
    "adapter_dtype": ("bfloat16", "float32"),
    "lora_r": (4, 16, 64),
    "lora_dropout": (0.0, 0.1),
    "lora_targets": ("default", "attention", "all-linear"),
}
_OF_ADAPTERS = ("adapter_dtype", "lora_r", "lora_dropout", "lora_targets")
_COMMAND, _WHAT = "make ground-truth", "composed figures"


@dataclass(frozen=True)
class ComposedPeak:
    """Peaks per GPU of one job, in bytes."""

    job: TrainingSetup
    tokens: int  # per GPU and micro-batch
    composed: float
    whole: float

    @property
    def difference_percent(self) -> float:
        return 100 * (self.composed / self.whole - 1)


def sample(table: ModelsTable, per_family: int, seed: int = _SEED) -> Iterator[TrainingSetup]:
    """Draw jobs with profiles in the table, equally many of each model family, on one GPU or on several."""
    chance = np.random.default_rng(seed)
    families = defaultdict(list)
    for name in table.models:
        families[architectures()[name].family].append(name)
    for names in families.values():
        found = 0
        while found < per_family:
            job = draw(names, chance)
            if job is not None and is_supported(table, job):
                yield job
                found += 1


def draw(names: Sequence[str], chance: np.random.Generator, **given: Any) -> TrainingSetup | None:
    """A random job, with the ``given`` settings; ``None`` if its settings exclude each other."""
    method = cast(Method, str(chance.choice(["full", "lora", "qlora"])))
    settings = {name: choices[chance.integers(len(choices))] for name, choices in _SETTINGS.items()}
    settings |= given
    if method == "full":
        settings = {name: value for name, value in settings.items() if name not in _OF_ADAPTERS}
    if method == "qlora":
        settings["quantization"] = "nf4"
    gpus = int(chance.choice([1, *[max(GPUS)] * 2]))
    architecture = architectures()[names[int(chance.integers(len(names)))]]
    try:
        return TrainingSetup(architecture, method, Stack.model_validate(settings), gpus)
    except ValueError:
        return None


def is_supported(table: ModelsTable, job: TrainingSetup) -> bool:
    try:
        _composed(table, job)
    except Unsupported:
        return False
    return True


def _composed(table: ModelsTable, job: TrainingSetup) -> GpuMemory:
    return gpu_memory(table, job.architecture.name, job.method, job.stack, several=job.gpus > 1)


def compare(table: ModelsTable, jobs: Sequence[TrainingSetup]) -> Iterator[list[ComposedPeak]]:
    """Compare jobs, each for several numbers of tokens and GPUs; takes seconds per job, two jobs at a time."""
    processes = multiprocessing.get_context("spawn")  # forked processes with torch may hang
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(jobs)), processes) as pool:
        for job, peaks in zip(jobs, pool.map(whole_peaks, jobs), strict=True):
            composed = _composed(table, job)
            yield [
                ComposedPeak(
                    replace(job, gpus=gpus),
                    tokens,
                    float(composed.peak_bytes(np.array([gpus]), np.array([tokens]))[0]),
                    whole,
                )
                for (gpus, tokens), whole in peaks.items()
            ]


def whole_peaks(job: TrainingSetup) -> dict[tuple[int, int], float]:
    """Peaks of a job under PyTorch's own wrappers, by GPUs and tokens per GPU.

    Short stacks predict them, unless layers are of several kinds or the number of ops depends on the tokens, as with
    the loss chunked_nll. In these cases the whole model runs, with two numbers of tokens.
    """
    tokens = [rank_trace.SAMPLES * t for t in TOKENS]
    try:
        figures = rank_trace.figures(job)
    except TraceError:
        return {(job.gpus, t): whole_run(job, t).peak_bytes(t, job.gpus) for t in tokens[:2]}
    return {(gpus, t): figures.peak_bytes(t, gpus) for gpus in (GPUS if job.gpus > 1 else (1,)) for t in tokens}


def whole_run(job: TrainingSetup, tokens: int, load: Load = load_at_once) -> RankFigures:
    """Trace a whole model with one number of tokens."""
    trace = rank_trace.run(job, layers=None, tokens=tokens // rank_trace.SAMPLES, load=load)
    optimizer = optimizer_bytes(job.stack.optim, trainable_shapes(job))
    return RankFigures(
        moments=((trace.peak_bytes, 0, 0),),
        end=(trace.end_bytes, 0, 0),
        states=optimizer.states,
        step=optimizer.step,
        shards_states=job.shards,
    )


def row(comparison: ComposedPeak) -> dict[str, Any]:
    """A line of the table; only settings that differ from the reference stack are listed."""
    job = comparison.job
    settings = {name: value for name, value in job.stack if value != getattr(Stack(), name) and name != "quantization"}
    return {
        "model": job.architecture.name,
        "method": job.method,
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()),
        "gpus": job.gpus,
        "tokens_per_gpu": comparison.tokens,
        "composed_gib": round(comparison.composed / GIB, 3),
        "whole_gib": round(comparison.whole / GIB, 3),
        "difference_percent": round(comparison.difference_percent, 3),
    }


def summary(comparisons: Sequence[ComposedPeak]) -> list[dict[str, Any]]:
    """The differences of composed and whole peaks, by sharding strategy."""
    groups: defaultdict[tuple[str, str], list[ComposedPeak]] = defaultdict(list)
    for comparison in comparisons:
        job = comparison.job
        adapters = "full" if job.method == "full" else "LoRA and QLoRA"
        groups[sharding_of(job), adapters].append(comparison)
        groups["all", ""].append(comparison)
    return [
        {
            "sharding": sharding,
            "method": method,
            "jobs": len({_without_gpus(c.job) for c in found}),
            "comparisons": len(found),
            **_spread(found),
        }
        for (sharding, method), found in sorted(groups.items(), key=lambda group: (group[0][0] == "all", group[0]))
    ]


def sharding_of(job: TrainingSetup) -> str:
    """What a job calls its sharding."""
    stack = job.stack
    if stack.fsdp_strategy == "full_shard":
        return stack.sharding if job.gpus > 1 else "one GPU"
    return f"fsdp1_{stack.fsdp_strategy}" if stack.sharding == "fsdp1" else stack.fsdp_strategy


def _without_gpus(job: TrainingSetup) -> tuple[str, str, Stack]:
    return job.architecture.name, job.method, job.stack


def _spread(comparisons: Iterable[ComposedPeak]) -> dict[str, str]:
    differences = [c.difference_percent for c in comparisons]
    absolute = np.abs(differences)
    return {
        "median": f"{np.median(absolute):.3f} %",
        "95th percentile": f"{np.percentile(absolute, 95):.3f} %",
        "lowest": f"{min(differences):+.2f} %",
        "highest": f"{max(differences):+.2f} %",
    }


def worst(comparisons: Sequence[ComposedPeak], count: int) -> list[dict[str, Any]]:
    """The jobs that differ most, each at its largest difference."""
    by_job: dict[tuple[str, str, Stack], ComposedPeak] = {}
    for comparison in sorted(comparisons, key=lambda c: abs(c.difference_percent)):
        by_job[_without_gpus(comparison.job)] = comparison
    return [row(c) for c in sorted(by_job.values(), key=lambda c: -abs(c.difference_percent))[:count]]


def main(
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = MODELS / NEWEST,
    per_family: Annotated[int, typer.Option(help="jobs of each family of models", min=1)] = PER_FAMILY,
) -> None:
    """Compare a random sample of jobs; write the table next to this file and the section of the documentation."""
    console = Console()
    table = ModelsTable.read(figures)
    jobs = list(sample(table, per_family))
    comparisons = [c for found in track(compare(table, jobs), "tracing", len(jobs), console=console) for c in found]
    rows = pd.DataFrame([row(c) for c in comparisons])
    rows.to_csv(OUTPUT, index=False, lineterminator="\n")
    write_section(VALIDATION, _WHAT, _COMMAND, _section(comparisons))
    console.print(pd.DataFrame(summary(comparisons)).to_string(index=False), soft_wrap=True)
    console.print(pd.DataFrame(worst(comparisons, 10)).to_string(index=False), soft_wrap=True)
    missed = sum(abs(c.difference_percent) > LIMIT_PERCENT for c in comparisons)
    console.print(f"{len(comparisons) - missed} of {len(comparisons)} comparisons are within {LIMIT_PERCENT:g} %")
    sys.exit(int(missed > 0))


def _section(comparisons: Sequence[ComposedPeak]) -> str:
    jobs = len({_without_gpus(c.job) for c in comparisons})
    families = len({c.job.architecture.family for c in comparisons})
    models = len({c.job.architecture.name for c in comparisons})
    return (
        f"{jobs} random jobs of {models} models of {families} families, each at several numbers of tokens and of GPUs "
        f"([the table](../../autoconf/pipeline/validation/{OUTPUT.name})):\n\n{markdown(summary(comparisons))}\n\n"
        f"The jobs that differ most:\n\n{markdown(worst(comparisons, 5))}"
    )


if __name__ == "__main__":
    typer.run(main)
