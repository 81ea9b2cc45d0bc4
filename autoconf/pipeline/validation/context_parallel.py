"""Compare composed memory under FSDP2 and PyTorch's context parallelism with traces of whole ranks.

Jobs with context parallelism are refused, because no version has the moments of their layers. Here these are traced
for a few jobs, on three layers with ring attention (``kernels.ring``), and composed as those of any other job: FSDP2
shards over all GPUs, and each holds its part of the tokens. The same rank runs at full depth under FSDP2's wrappers.
Ranks of a small model also run with real tensors, in processes that communicate through gloo.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB
from autoconf.memory.ways import layer_way
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.kernels import ring
from autoconf.pipeline.tracing.extrapolate import layer_moments
from autoconf.pipeline.tracing.ledger import TOKENS, rank_for, trace
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup
from autoconf.pipeline.tracing.trace_model import layer_job, short_stack
from autoconf.pipeline.validation import rank_trace
from autoconf.pipeline.validation.composition import whole_run
from autoconf.pipeline.validation.named_modules import table_of
from autoconf.pipeline.validation.rank_truth import small
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("context_parallel.csv")
GPUS = 8
LIMIT_PERCENT = 0.5  # that sharing samples adds to the difference of the same job without
_PROCESSES = 2
TOKENS_OF_A_GPU = 8192  # in its parts of two samples
_PLAIN: dict[str, Any] = {"loss": "chunked", "gradient_accumulation": False, "sharding": "fsdp2", "attention": "sdpa"}
# Model, method, GPUs that share a sample, and settings other than ``_PLAIN``.
_JOBS: tuple[tuple[str, Method, int, dict[str, Any]], ...] = (
    ("pythia-160m", "full", 2, {}),
    ("pythia-160m", "full", 8, {}),
    ("pythia-160m", "lora", 4, {"gradient_accumulation": True}),
    # Heads that share keys and values. Of these jobs only the first peaks while it has gathered copies of them.
    ("smollm2-135m", "full", 32, {}),
    ("tinyllama-1.1b", "full", 8, {}),
    ("granite-3.1-2b", "full", 8, {}),
    ("llama3.2-1b", "full", 2, {}),
    ("llama3.2-1b", "lora", 4, {"gradient_accumulation": True}),
)


class Shared(NamedTuple):
    """A job whose samples several GPUs share."""

    job: TrainingSetup
    size: int  # GPUs that share a sample


def jobs() -> Iterator[Shared]:
    """The jobs of the table."""
    for model, method, size, settings in _JOBS:
        stack = Stack.model_validate({**_PLAIN, **settings})
        yield Shared(TrainingSetup(architectures()[model], method, stack, max(GPUS, size)), size)


@contextmanager
def _rank(rank: int, gpus: int) -> Iterator[None]:
    """Act as a rank of some GPUs whose other ranks and collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def sharing(gpus: int, size: int) -> Iterator[None]:
    """Run a rank of the joined process group as one of ``size`` that share samples."""
    # accelerate 1.15.0, parallelism_config.py, _get_mesh: "cp" is within "dp_shard", and FSDP shards over both.
    mesh = init_device_mesh("cpu", (gpus // size, size), mesh_dim_names=("dp_shard", "cp"))
    with ring.context_parallel(mesh["cp"].get_group()):
        yield


def composed(table: ModelsTable, shared: Shared, rank: int) -> float:
    """The composed peak of one of the GPUs that share a sample, in bytes."""
    job, name = shared.job, shared.job.architecture.name
    known, way = table.figures(name), layer_way(job.stack, job.method, several=True)
    short = short_stack(job.architecture)
    adapters = rank_for(job.architecture, short)
    with _rank(rank, shared.size), sharing(shared.size, shared.size):
        # Ring attention divides the tokens of a GPU in two.
        storages = trace(layer_job(job.architecture, way), short, adapters, tokens=2 * TOKENS)
    moments = np.array(layer_moments(storages, short, job.architecture.kinds))
    return _peak(table_of(replace(known, layers={**known.layers, way: moments})), job)


def _peak(table: ModelsTable, job: TrainingSetup) -> float:
    memory = gpu_memory(table, job.architecture.name, job.method, job.stack, several=True)
    return float(memory.peak_bytes(np.array([job.gpus]), np.array([TOKENS_OF_A_GPU]))[0])


def row(table: ModelsTable, shared: Shared) -> dict[str, Any]:
    """A line of the table: peaks of the first or the last of the GPUs that share a sample, which of them is larger."""
    job = shared.job
    peaks = {rank: composed(table, shared, rank) for rank in (0, shared.size - 1)}
    largest = max(peaks, key=lambda rank: peaks[rank])
    with _rank(largest, job.gpus), sharing(job.gpus, shared.size):
        whole = whole_run(job, TOKENS_OF_A_GPU).peak_bytes(TOKENS_OF_A_GPU, job.gpus)
    with _rank(0, job.gpus):
        unshared = whole_run(job, TOKENS_OF_A_GPU).peak_bytes(TOKENS_OF_A_GPU, job.gpus)
    plain = _peak(table, job)
    settings = {name: value for name, value in job.stack if value != {**dict(Stack()), **_PLAIN}[name]}
    return {
        "model": job.architecture.name,
        "method": job.method,
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()),
        "gpus": job.gpus,
        "context_parallel_size": shared.size,
        "tokens_per_gpu": TOKENS_OF_A_GPU,
        "rank": largest,
        "composed_gib": round(peaks[largest] / GIB, 3),
        "whole_gib": round(whole / GIB, 3),
        "difference_percent": round(100 * (peaks[largest] / whole - 1), 3),
        "without_ring_percent": round(100 * (plain / whole - 1), 3),
        "unshared_difference_percent": round(100 * (plain / unshared - 1), 3),
    }


def processes() -> Iterator[float]:
    """By how much traces differ from ranks with real tensors, in percent."""
    architecture = small(architectures()["llama3.2-1b"], layers=4)
    job = TrainingSetup(architecture, "full", Stack.model_validate(_PLAIN), _PROCESSES)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_be_a_rank, (job, folder), nprocs=_PROCESSES)
        for rank in range(_PROCESSES):
            with _rank(rank, _PROCESSES):
                fake = _traced(job)
            yield 100 * (fake / json.loads((Path(folder) / f"peak{rank}").read_text()) - 1)


def _traced(job: TrainingSetup, *, real: bool = False) -> int:
    with sharing(_PROCESSES, _PROCESSES):
        return rank_trace.run(job, layers=4, tokens=512, real=real).peak_bytes


def _be_a_rank(rank: int, job: TrainingSetup, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", _PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=_PROCESSES)
    try:
        peak = _traced(job, real=True)
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"peak{rank}").write_text(json.dumps(peak))


def main() -> None:
    """Run the comparisons, and write the table."""
    differences = [*processes()]
    print(f"fake tensors against real ones in {_PROCESSES} processes, percent: {differences}", flush=True)
    table, rows = ModelsTable.read(registry.MODELS / NEWEST), []
    for shared in jobs():
        rows.append(row(table, shared))
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(OUTPUT, index=False, lineterminator="\n")
    differences += [each["difference_percent"] - each["unshared_difference_percent"] for each in rows]
    sys.exit(int(max(map(abs, differences)) > LIMIT_PERCENT))


if __name__ == "__main__":
    main()
