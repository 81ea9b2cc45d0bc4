"""Trace what a frozen tower holds beside its language model, and write it for the package.

``python -m autoconf.pipeline.tracing.towers`` writes ``autoconf/memory/towers.json``, in a few minutes for each tower.

One short run with images is enough for a way: tokens and image tokens are primes that divide no dimension of the model,
so the sizes of storages show how they grow (as in ``ledger``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.progress import track
from torch import nn

from autoconf.jobs.stack import Stack
from autoconf.memory import towers
from autoconf.memory.envelope import undominated
from autoconf.memory.profile import LayerWay, Point
from autoconf.memory.towers import Held, Tower, TowerWay
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.towers import checkpoints, with_tower
from autoconf.pipeline.tracing import vision
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.ledger import TOKENS
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model
from autoconf.pipeline.tracing.recorder import (
    EMBEDDING,
    LOSS,
    SAMPLES,
    TAIL,
    Part,
    Recorder,
    SizeChange,
    TraceError,
    parts,
)
from autoconf.pipeline.tracing.trace_model import layer_job
from autoconf.pipeline.tracing.ways import layer_ways

IMAGE_TOKENS = 1009  # of a sample: a prime
_SHORT = 2  # decoder layers
_FIRST_LAYER = Part("layer", 0)


class _Run(NamedTuple):
    """A traced micro-batch; all arrays have a row for each allocation."""

    parts: list[Part]
    live: np.ndarray  # bytes that are alive, shape (allocations, 3): constant, per token, per image token
    of_embeddings: np.ndarray  # whether the gradient of the embeddings exists
    end: np.ndarray

    def at(self, part: Part) -> np.ndarray:
        """What is alive before the first allocation of a part."""
        return self.live[max(self.parts.index(part) - 1, 0)]


def tower_ways() -> list[TowerWay]:
    """All combinations of settings that change the memory of a tower."""
    return [*dict.fromkeys(TowerWay.of(way) for way in layer_ways())]


def held(checkpoint: Architecture, way: TowerWay) -> tuple[Held, ...]:
    """What a tower holds in a way.

    Raises:
        TraceError: the sizes of the model do not tell tokens and image tokens apart.
    """
    of_layers = next(one for one in layer_ways() if TowerWay.of(one) == way)
    alone = architectures()[checkpoints()[checkpoint.name].language_model]
    both, text = (_run(architecture, of_layers) for architecture in (checkpoint, alone))
    rows = []
    running = {
        Point.EMBEDDING: [part == EMBEDDING for part in both.parts],
        Point.FIRST_END: (np.array([part == TAIL for part in both.parts]) & ~both.of_embeddings).tolist(),
        Point.TAIL: (np.array([part == TAIL for part in both.parts]) & both.of_embeddings).tolist(),
    }
    for point, which in running.items():
        moments = both.live[which]
        rows += [Held(point, *map(float, row)) for row in moments[undominated(moments, decimals=0)]]
    kept = {
        Point.FORWARD: both.at(_FIRST_LAYER) - text.at(_FIRST_LAYER),
        Point.LOSS: both.at(LOSS) - text.at(LOSS),
        Point.TAIL_END: both.end - text.end,
    }
    return (*rows, *(Held(point, *map(float, sizes)) for point, sizes in kept.items()))


def _run(architecture: Architecture, way: LayerWay) -> _Run:
    """Trace a micro-batch of a short stack of layers; with the whole tower, if there is one."""
    job = layer_job(architecture, way)
    if architecture.vision:
        job = TrainingSetup(architecture, job.method, job.stack, image_tokens=IMAGE_TOKENS)
    with first_rank(job, _SHORT) as gpu:
        _check_sizes(gpu.model)
        recorder = Recorder()
        for tensor in gpu.resident():
            recorder.see(tensor)
        recorder.changes.clear()
        with recorder, parts(gpu.layers, recorder):
            input_ids = torch.zeros((SAMPLES, TOKENS), dtype=torch.long)
            labels, images = torch.zeros_like(input_ids), gpu.images(input_ids)
            loss = gpu.model(input_ids=input_ids, labels=labels, **images)["loss"]
            recorder.part = LOSS
            loss.backward()
            layers = {p for layer in gpu.layers for p in layer.parameters()}
            gradients = {recorder.number(p.grad) for p in gpu.trainable if p.grad is not None}
            outside = [p for p in gpu.trainable if p not in layers and p.dim() > 1]
            embeddings = {recorder.number(p.grad) for p in outside[:1] if p.grad is not None}
            changes = [*recorder.changes]
    return _of(changes, gradients, embeddings)


def _of(changes: Sequence[SizeChange], gradients: set[int], embeddings: set[int]) -> _Run:
    """A run from its log; gradients of parameters are left out."""
    sizes: dict[int, np.ndarray] = {}
    live, exists = np.zeros(3), False
    rows, where, with_embeddings = [], [], []
    for change in changes:
        exists |= change.storage in embeddings
        if change.nbytes > 0:
            sizes[change.storage] = np.zeros(3) if change.storage in gradients else _size(change)
            live = live + sizes[change.storage]
            rows.append(live)
            where.append(change.part)
            with_embeddings.append(exists)
        elif change.storage in sizes:
            live = live - sizes.pop(change.storage)
    return _Run(where, np.array(rows), np.array(with_embeddings), live)


def _size(change: SizeChange) -> np.ndarray:
    elements = change.nbytes // change.itemsize
    if elements % IMAGE_TOKENS == 0:
        return np.array([0.0, 0.0, change.nbytes / (SAMPLES * IMAGE_TOKENS)])
    if elements % TOKENS == 0:
        return np.array([0.0, change.nbytes / (SAMPLES * TOKENS), 0.0])
    if elements % (TOKENS - 1) == 0:
        return np.array([0.0, change.nbytes / (SAMPLES * (TOKENS - 1)), 0.0])
    return np.array([change.nbytes, 0.0, 0.0])


def _check_sizes(model: nn.Module) -> None:
    for size in {size for parameter in model.parameters() for size in parameter.shape}:
        if any(size % prime == 0 for prime in (IMAGE_TOKENS, TOKENS, TOKENS - 1)):
            raise TraceError(f"a dimension of the model, {size}, is a multiple of a number of tokens")


def tower(name: str) -> Tower:
    """The figures of a checkpoint's tower."""
    checkpoint = with_tower(name)
    model = build_model(TrainingSetup(checkpoint, "full", Stack()))
    part, blocks = vision.tower_of(model), vision.blocks(model)
    linear = {path: module for path, module in part.named_modules() if isinstance(module, nn.Linear)}
    shape = vision.patches(part, 1)
    return Tower(
        checkpoints()[name].language_model,
        tuple(checkpoint.aliases),
        sum(parameter.numel() for parameter in part.parameters()),
        len(blocks),
        sum(parameter.numel() for parameter in blocks[0].parameters()),
        sum(module.weight.numel() for module in blocks[0].modules() if isinstance(module, nn.Linear)),
        sum(module.weight.numel() for module in linear.values()),
        sum(cuda_kernels.absmax_bytes((module.out_features, module.in_features)) for module in linear.values()),
        sum(buffer.nbytes for buffer in part.buffers()),
        tuple(dict.fromkeys(path.rpartition(".")[2] for path in linear)),
        4.0 * shape[0] * shape[1],
        dict(_ways(checkpoint)),
    )


def _ways(checkpoint: Architecture) -> Iterator[tuple[TowerWay, tuple[Held, ...]]]:
    for way in track(tower_ways(), description=checkpoint.name):
        yield way, held(checkpoint, way)


def main(names: Annotated[list[str] | None, typer.Argument(help="checkpoints; by default all")] = None) -> None:
    """Write the figures of towers; those of other checkpoints stay as they are."""
    known = json.loads(towers.TABLE.read_text(encoding="utf-8")) if towers.TABLE.exists() else {}
    found = {name: tower(name).to_json() for name in names or checkpoints()}
    merged = {name: {**known, **found}[name] for name in checkpoints() if name in {**known, **found}}
    lines = (f"{json.dumps(name)}: {json.dumps(of, separators=(',', ':'))}" for name, of in merged.items())
    towers.TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
