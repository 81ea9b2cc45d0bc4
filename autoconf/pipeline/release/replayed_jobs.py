"""Replays of random jobs in large numbers, from which a version learns fragmentation.

``python -m autoconf.pipeline.release.replayed_jobs record FOLDER --minutes 60 --seed 1`` records random models,
methods and stacks; processes with different seeds may share a folder. ``... replay FOLDER`` then draws sizes, numbers
of GPUs and capacities for each recording, replays each job on each capacity, and writes
``calibration/replayed_jobs.parquet``.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.stack import Allocator, Stack
from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.fragmentation import EXPANDABLE
from autoconf.memory.model import StackMemory
from autoconf.memory.replay import Action, Event, Program
from autoconf.memory.replay import replay as replayed
from autoconf.memory.reserve import Reserve
from autoconf.memory.units import GIB, Floats, Integers
from autoconf.pipeline.calibration.fragmentation import JOBS
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.release.random_jobs import random_stacks
from autoconf.pipeline.replay import compiled
from autoconf.pipeline.replay.event_arrays import EventArrays
from autoconf.pipeline.replay.recording import Recording, recorded_at, recording
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.predictor import registry
from autoconf.predictor.autogluon import LABEL
from autoconf.predictor.predictor import Predictor

_SECONDS = 200  # for one recording; the longest ones are those of hybrid models under DDP, at full depth
_SIZES_OF_CHUNKED = 3  # numbers of tokens of a loss over chunks, each of which needs its own recording
_LEAST_GIB, _MOST_GIB = 4.0, 180.0  # peaks of the replayed jobs: those of GPUs of today
_TOKENS = 64, 400_000  # on each GPU
# Jobs of a recording, before the next one is read.
_IN_A_ROUND: dict[Allocator, int] = {"default": 40, "expandable_segments": 4}
_AGREES = 0.03  # by which the most that a recording allocates may differ from its peak by profiles
# The moment that decides depends on how much is kept free, which is not known yet; it is assumed to be this share of
# the activations. Capacities are drawn up to a larger share and a constant above what that moment holds.
_SHARE = 0.2
_MOST_FREE: dict[Allocator, tuple[float, float]] = {"default": (0.45, 3.0), "expandable_segments": (0.05, 2.0)}
_NOMINAL = Reserve((0.0, 400.0), (0.0, 400 * _SHARE), (0.0, 400 * _SHARE))

_SUFFIX: dict[Allocator, str] = {"default": "", "expandable_segments": EXPANDABLE}
# GPUs of different capacities on which each drawn job is replayed.
_CAPACITIES: dict[Allocator, int] = {"default": 3, "expandable_segments": 1}

# Settings of a job's stack in the table: those that change the sizes or the order of large blocks.
_OF_STACK = "torch_dtype", "mixed_precision", "gradient_checkpointing", "gradient_accumulation", "optim", "loss"

app = typer.Typer(add_completion=False, no_args_is_help=True)


def stack_of(job: dict[str, Any]) -> Stack:
    """The training stack of a drawn job."""
    accumulates = job["gradient_accumulation_steps"] > 1
    return training_stack(job["method"], accumulates, job["stack"], *[job.get(name) for name in SETTINGS])


# --- recording --------------------------------------------------------------------------------------------------------


def drawn(predictor: Predictor, generator: np.random.Generator) -> Iterator[tuple[dict[str, Any], TrainingSetup]]:
    """Draw jobs of a version's domain that can be recorded within minutes, without end."""
    for job in random_stacks(predictor, generator):
        architecture, stack = architectures()[job["model_name"]], stack_of(job)
        gpus = int(generator.choice([1, 2]))
        if gpus > 1 and stack.sharding == "fsdp1":
            gpus = int(generator.choice([2, 4, 8]))
        hybrid = len(set(architecture.kinds)) > 1
        if gpus == 1 and architecture.parameters > 40e9 and job["method"] != "qlora":
            continue  # fits on no GPU
        if gpus > 1 and stack.sharding == "fsdp2" and "8bit" in stack.optim:
            continue  # does not run (replay.record.check_recordable)
        if hybrid and (architecture.layers > 40 or generator.random() < 0.5):
            continue  # is recorded at full depth, which takes as long as many others
        yield {**job, "gpus": gpus}, TrainingSetup(architecture, job["method"], stack, gpus)


def _record(job: dict[str, Any], setup: TrainingSetup, folder: Path, generator: np.random.Generator) -> int:
    """Write the recordings of a job, and return their number."""
    name = f"{setup.architecture.name}-{setup.method}-{setup.gpus}-{zlib.crc32(str(setup.stack).encode())}"
    if setup.stack.loss == "full":
        _write(recording(setup), job, folder / name)
        return 1
    low, high = np.log(_TOKENS)
    count = 1 if setup.gpus > 1 and setup.stack.sharding == "ddp" else _SIZES_OF_CHUNKED
    for tokens in (2 * np.exp(generator.uniform(low, high, count) / 2 + low / 2).astype(int)).tolist():
        events = recorded_at(setup, tokens)
        nothing = np.zeros(len(events.nbytes))
        sizes = np.stack([events.nbytes.astype(float), nothing, nothing], axis=1)
        found = Recording(events.actions, events.blocks, events.streams, sizes)
        _write(found, {**job, "tokens": tokens}, folder / f"{name}-{tokens}")
    return count


def _write(found: Recording, job: dict[str, Any], path: Path) -> None:
    np.savez_compressed(
        path.with_name(f"{path.name}.npz"),
        actions=found.actions.astype(np.int8),
        blocks=found.blocks.astype(np.int32),
        streams=found.streams.astype(np.int8),
        sizes=found.sizes,
    )
    path.with_name(f"{path.name}.json").write_text(json.dumps(job))


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"takes more than {_SECONDS} s")


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(help="folder of recordings, created if needed")],
    minutes: Annotated[float, typer.Option(help="how long to record")] = 60.0,
    seed: Annotated[int, typer.Option(help="seed of the drawn jobs")] = 1,
) -> None:
    """Record random jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, until = np.random.default_rng(seed), time.monotonic() + 60 * minutes
    signal.signal(signal.SIGALRM, _too_long)
    for job, setup in drawn(registry.load("2.0.0"), generator):
        if time.monotonic() > until:
            break
        about = f"{setup.architecture.name}, {setup.method}, {setup.gpus} GPUs, {setup.stack.sharding}"
        signal.alarm(_SECONDS)
        try:
            with redirect_stdout(sys.stderr):  # libraries print
                print(f"{about}: {_record(job, setup, folder, generator)} recordings", file=sys.stderr)
        except Exception as error:  # what cannot be recorded is left out, with any library's error
            print(f"{about}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            signal.alarm(0)


# --- replaying --------------------------------------------------------------------------------------------------------


class Replayed:
    """A recording, and the memory of its job by composed profiles.

    Args:
        path: the recording's array file.
        memory: the memory of a version without margins.
    """

    def __init__(self, path: Path, memory: StackMemory) -> None:
        self.job = json.loads(path.with_suffix(".json").read_text())
        with np.load(path) as arrays:
            actions, blocks, streams = (arrays[name].astype(np.int64) for name in ("actions", "blocks", "streams"))
            self.recording = Recording(actions, blocks, streams, arrays["sizes"])
        self.stack, self.memory = stack_of(self.job), memory
        self.row = memory.row(self.job["model_name"], self.job["method"], self.stack)

    def size(self, generator: np.random.Generator) -> tuple[int, int]:
        """Draw the tokens on each GPU, and the number of GPUs."""
        gpus = self.job["gpus"]
        if "tokens" in self.job:
            return self.job["tokens"], gpus
        if gpus > 1 and self.stack.sharding == "fsdp2":
            gpus = int(generator.choice([2, 4, 8, 16, 32]))
        return 2 * int(np.exp(generator.uniform(*np.log(_TOKENS)))), gpus

    def _place(self, tokens: int, gpus: int) -> tuple[Integers, Integers, Floats]:
        return np.array([self.row]), np.array([gpus]), np.array([float(tokens)])

    def held_gib(self, tokens: int, gpus: int) -> tuple[float, float]:
        """GiB at the deciding moment, and activations among them."""
        held, activations = self.memory.deciding_gib(*self._place(tokens, gpus), _NOMINAL)[0]
        return float(held), float(activations)

    def loading_gib(self, gpus: int) -> float:
        """GiB on each GPU while the model is loaded, which a rule of versions checks; 0 if it is loaded in parts."""
        return float(self.memory.loading_bytes(np.array([self.row]), np.array([gpus]))[0]) / GIB

    def agrees(self, generator: np.random.Generator) -> bool:
        """Whether a drawn job allocates as much as its profiles say."""
        tokens, gpus = self.size(generator)
        peak = float(self.memory.peak_bytes(*self._place(tokens, gpus))[0]) / GIB
        allocated = compiled.replay(self.events(tokens, gpus)).allocated / GIB
        return abs(allocated / max(peak, self.loading_gib(gpus)) - 1) <= _AGREES

    def events(self, tokens: int, gpus: int) -> EventArrays:
        return self.recording.events(tokens, gpus)

    def rows(
        self, generator: np.random.Generator, count: int, allocator: Allocator = "default"
    ) -> Iterator[dict[str, Any]]:
        """Draw jobs, and replay each on GPUs of several capacities."""
        stack = self.stack.model_copy(update={"allocator": allocator})
        about = {
            "model": self.job["model_name"],
            "method": self.job["method"],
            "sharding": (stack.sharding if self.job["gpus"] > 1 else "none") + _SUFFIX[allocator],
            **{name: getattr(stack, name) for name in _OF_STACK},
        }
        most_share, most_constant = _MOST_FREE[allocator]
        for _ in range(count):
            tokens, gpus = self.size(generator)
            held, activations = self.held_gib(tokens, gpus)
            if not max(_LEAST_GIB, self.loading_gib(gpus)) < held < _MOST_GIB:
                continue
            places = np.array([self.row]), np.array([gpus])
            job = {
                **about,
                "gpus": gpus,
                "tokens": tokens,
                "held_gib": held,
                "activations_gib": activations,
                "states_gib": float(self.memory.resident_bytes(*places, states=True)[0]) / GIB,
            }
            free = generator.uniform(-0.1, most_share * activations + most_constant, _CAPACITIES[allocator])
            outcomes = _run(self.events(tokens, gpus), (held + free) * GIB, allocator)
            for headroom, runs in zip(free.tolist(), outcomes, strict=True):
                yield {**job, "headroom_gib": headroom, LABEL: int(runs)}


def _runs_on(events: EventArrays, capacity: int, unlimited: compiled.Outcome) -> bool:
    # With all that it reserves it runs as if there were no limit, and with less than it allocates it cannot.
    if not unlimited.allocated <= capacity < unlimited.reserved:
        return capacity >= unlimited.reserved
    return compiled.replay(events, capacity).failed_at < 0


def _run(events: EventArrays, capacities: Floats, allocator: Allocator) -> list[bool]:
    """Whether a program runs on GPUs of these capacities in bytes; only the default allocator is compiled."""
    if allocator == "default":
        free = compiled.replay(events)
        return [_runs_on(events, int(capacity), free) for capacity in capacities.tolist()]
    rows = zip(*(column.tolist() for column in events), strict=True)
    program = Program([Event(Action(action), *rest) for action, *rest in rows])
    expandable = AllocatorSettings(expandable_segments=True)
    return [replayed(program, int(capacity), expandable).failed_at is None for capacity in capacities.tolist()]


def memory_of(version: str) -> StackMemory:
    """The memory of a version's models, without margins."""
    memory = registry.load(version).memory
    assert isinstance(memory, StackMemory)
    return StackMemory(memory.table)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="folder of recordings")],
    output: Annotated[Path, typer.Option(help="where to write the table")] = JOBS,
    jobs: Annotated[int, typer.Option(help="jobs to replay with PyTorch's default allocator")] = 200_000,
    expandable: Annotated[int, typer.Option(help="jobs to replay with expandable segments, which is slower")] = 5_000,
    minutes: Annotated[float, typer.Option(help="stop earlier than that, with fewer jobs")] = 600.0,
    seed: Annotated[int, typer.Option(help="seed of the drawn sizes and capacities")] = 1,
) -> None:
    """Replay random jobs of recordings."""
    memory, generator = memory_of("2.0.0"), np.random.default_rng(seed)
    until = time.monotonic() + 60 * minutes
    paths = [path for path in sorted(folder.glob("*.npz")) if Replayed(path, memory).agrees(generator)]
    left_out = sorted(path.stem for path in {*folder.glob("*.npz")} - {*paths})
    print(f"left out, as profiles say otherwise: {', '.join(left_out) or 'none'}", file=sys.stderr)
    found: list[dict[str, Any]] = []
    allocators: tuple[tuple[Allocator, int], ...] = ("expandable_segments", expandable), ("default", jobs)
    for allocator, count in allocators:
        enough = len(found) + count
        while len(found) < enough and time.monotonic() < until:
            for path in generator.permutation(np.array(paths, object)).tolist():
                if len(found) < enough and time.monotonic() < until:
                    found += list(Replayed(path, memory).rows(generator, _IN_A_ROUND[allocator], allocator))
            print(f"{len(found):,} jobs of {len(paths)} recordings", file=sys.stderr)
            as_table(found).to_parquet(output, compression="zstd", index=False)


def as_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table with small columns."""
    gib = ["held_gib", "activations_gib", "states_gib", "headroom_gib"]
    table = pd.DataFrame(rows)
    return table.assign(**table[gib].round(3).astype(np.float32)).astype(
        {"gpus": np.int16, "tokens": np.int32, LABEL: np.int8}
    )


if __name__ == "__main__":
    app()
