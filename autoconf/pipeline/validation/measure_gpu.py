"""Run the reference workload on the local GPU, near the limit of its memory, and compare measured with traced peaks.

One GPU is enough: a job on several GPUs runs as one rank whose collectives do nothing (``torch.distributed``'s fake
backend) and which holds the memory of a real rank. Weights are random. Writes ``measured_peaks.csv`` next to this file.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import typer
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoconf.errors import AutoConfError
from autoconf.jobs.stack import REFERENCE
from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Unsupported
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup, build_model, decoder_layers
from autoconf.predictor.registry import MODELS

OUTPUT = Path(__file__).with_name("measured_peaks.csv")
# Models, methods and numbers of GPUs near the limit of a GPU with 40 to 140 GiB; the tokens depend on the local GPU.
CASES: list[tuple[str, Method, int]] = [
    ("granite-3.1-2b", "full", 1), ("granite-3.1-2b", "lora", 1), ("granite-3b-code-base-128k", "full", 1),
    ("mistral-7b-v0.1", "lora", 1), ("llama-7b", "lora", 1), ("llama3.1-8b", "lora", 1), ("granite-20b-v2", "lora", 1),
    ("mistral-7b-v0.1", "full", 2), ("llama3.1-8b", "full", 4), ("llama3.1-8b", "full", 8), ("llama-13b", "full", 4),
    ("llama-13b", "lora", 2),
]  # fmt: skip
SHARE_OF_MEMORY = 0.92  # target share of usable memory for the traced peak: within 15 % of the limit
STEPS, ACCUMULATION = 2, 4
SAMPLE = 2048  # tokens per sample


@dataclass(frozen=True)
class GpuMeasurement:
    """One job: its traced peak and the measurements of CUDA's allocator, in GiB."""

    model_name: str
    method: str
    gpus: int
    samples_per_gpu: int
    tokens_per_sample: int
    traced_gib: float
    allocated_gib: float  # torch.cuda.max_memory_allocated
    reserved_gib: float  # torch.cuda.max_memory_reserved
    out_of_memory: bool
    device: str
    usable_gib: float
    torch: str
    transformers: str
    peft: str


def samples_near_the_edge(memory: GpuMemory, gpus: int, usable_gib: float) -> int:
    """Samples per GPU with which the traced peak is closest to the target share of memory; 0 if one is too many."""
    samples = np.arange(1, 513)
    peaks = memory.peak_bytes(np.full(len(samples), gpus), samples * SAMPLE)
    return int((peaks <= SHARE_OF_MEMORY * usable_gib * GIB).sum())


def run(job: TrainingSetup, samples: int, device: str = "cuda") -> bool:
    """Train a few steps on the device; return whether they finished."""
    gpus = job.gpus
    model: Any = build_model(job)
    model.set_attn_implementation("sdpa")
    if gpus > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
        mesh = init_device_mesh(device, (gpus,))
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    try:
        model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.02, 0.02)
            for buffer in model.buffers():
                buffer.zero_()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
        for _ in range(STEPS):
            for micro_batch in range(ACCUMULATION):
                if isinstance(model, FSDPModule):
                    model.set_requires_gradient_sync(micro_batch == ACCUMULATION - 1)
                ids = torch.randint(0, 1000, (samples, SAMPLE), device=device)
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    except torch.OutOfMemoryError:
        return False
    finally:
        if gpus > 1:
            dist.destroy_process_group()
    return True


def measure() -> Iterator[GpuMeasurement]:
    """Run every case that fits on the local GPU."""
    usable_gib = torch.cuda.mem_get_info()[1] / GIB
    table = ModelsTable.read(MODELS / NEWEST)
    for name, method, gpus in CASES:
        try:
            memory = gpu_memory(table, name, method, REFERENCE, several=gpus > 1)
        except Unsupported as error:
            raise AutoConfError(error.reason(NEWEST)) from None
        samples = samples_near_the_edge(memory, gpus, usable_gib)
        if not samples:
            continue
        torch.cuda.reset_peak_memory_stats()
        went_through = run(TrainingSetup(architectures()[name], method, REFERENCE, gpus), samples)
        peak = memory.peak_bytes(np.array([gpus]), np.array([samples * SAMPLE]))[0]
        yield GpuMeasurement(
            name, method, gpus, samples, SAMPLE,
            traced_gib=round(peak / GIB, 3),
            allocated_gib=round(torch.cuda.max_memory_allocated() / GIB, 3),
            reserved_gib=round(torch.cuda.max_memory_reserved() / GIB, 3),
            out_of_memory=not went_through,
            device=torch.cuda.get_device_name(),
            usable_gib=round(usable_gib, 2),
            torch=torch.__version__, transformers=version("transformers"), peft=version("peft"),
        )  # fmt: skip
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Measure, print and write the table; exit with 1 where there is no CUDA GPU."""
    console = Console()
    if not torch.cuda.is_available():
        console.print("make measure needs a CUDA GPU, but torch finds none: nothing was measured")
        raise typer.Exit(1)
    rows = []
    for measured in measure():
        rows.append(asdict(measured))
        console.print(measured)
    pd.DataFrame(rows).to_csv(OUTPUT, index=False, lineterminator="\n")
    console.print(f"written to {OUTPUT}")


if __name__ == "__main__":
    typer.run(main)
