"""Memory of jobs under any stack: the traced figures of their layers and head, found, put together once and kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.optimizers import Shape, optimizer_bytes
from autoconf.memory.profile import HeadWay, LayerWay, Point, Trainable
from autoconf.memory.reserve import Reserve
from autoconf.memory.sharding import Bytes, Held, Way, held
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Floats, Integers, Outside

_SIZES = {"bfloat16": 2, "float32": 4}


class Figures(NamedTuple):
    """What a GPU of a job holds: on one GPU, and on each of several."""

    one: Held
    several: Held

    def of(self, gpus: Integers) -> Iterator[tuple[Held, Integers]]:
        """Which of the two each candidate asks, as indices."""
        for figures, which in ((self.one, gpus == 1), (self.several, gpus > 1)):
            if which.any():
                yield figures, np.flatnonzero(which)


class StackMemory:
    """Figures of models under any stack; every combination that is asked for gets a row."""

    def __init__(self, table: ModelsTable) -> None:
        self.table = table
        self._rows: dict[tuple[str, str, Stack], int | Outside] = {}
        self._figures: list[Figures] = []
        self._lock = threading.Lock()

    def row(self, model: str, method: str, stack: Stack) -> int | Outside:
        """The row of a job's figures, or why there are none."""
        key = (model, method, stack)
        if key not in self._rows:
            with self._lock:
                if key not in self._rows:
                    self._rows[key] = self._new_row(*key)
        return self._rows[key]

    def _new_row(self, model: str, method: str, stack: Stack) -> int | Outside:
        found = [gpu_figures(self.table, model, method, stack, several=several) for several in (False, True)]
        for figures in found:
            if isinstance(figures, Outside):
                return figures
        self._figures.append(Figures(*found))  # type: ignore[arg-type]
        return len(self._figures) - 1

    def _each(self, rows: Integers, gpus: Integers, ask: Callable[[Held, Integers], Floats], *shape: int) -> Floats:
        """Ask each row's figures about its candidates, given as indices; an answer has the given shape."""
        answers = np.empty((len(rows), *shape))
        order = np.argsort(rows, kind="stable")
        for of_row in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1) if len(rows) else ():
            for figures, which in self._figures[rows[of_row[0]]].of(gpus[of_row]):
                answers[of_row[which]] = ask(figures, of_row[which])
        return answers

    def resident_bytes(self, rows: Integers, gpus: Integers) -> Floats:
        """Weights, optimizer state and one set of gradients, divided where they can be: the least that training has."""
        return self._each(rows, gpus, lambda f, which: f.resident[0] + f.resident[1] / gpus[which])

    def gradient_bytes(self, rows: Integers) -> Floats:
        """Gradients that stay whole on every GPU between micro-batches of FSDP; 0 without accumulation."""
        distinct, places = np.unique(rows, return_inverse=True)
        return np.array([self._figures[row].several.whole_gradients for row in distinct.tolist()], float)[places]

    def peak_bytes(self, rows: Integers, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes per GPU, without what must stay free; arguments as ``MemoryTable.peak_bytes`` has them."""
        return self._each(rows, gpus, lambda f, which: f.peak_bytes(gpus[which], tokens[which]))

    def needed_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB that a GPU must have, shape (candidates,)."""
        return self._each(rows, gpus, lambda f, which: f.needed_bytes(gpus[which], tokens[which], reserve)) / GIB

    def deciding_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB held at the moment that decides, and of that what grows with the tokens; shape (candidates, 2)."""
        return self._each(rows, gpus, lambda f, which: f.deciding_bytes(gpus[which], tokens[which], reserve), 2) / GIB

    def parts_gib(self, row: int, gpus: int, tokens: float, reserve: Reserve) -> dict[str, float]:
        """The parts of what one candidate needs, ``reserve`` among them, in GiB."""
        figures = self._figures[row].one if gpus == 1 else self._figures[row].several
        return {name: value / GIB for name, value in figures.parts(gpus, tokens, reserve).items()}


def gpu_figures(table: ModelsTable, model: str, method: str, stack: Stack, *, several: bool) -> Held | Outside:
    """What a GPU of a job holds, or why that cannot be told.

    Args:
        table: figures.
        model: a model of the table.
        method: ``full``, ``lora`` or ``qlora``.
        stack: how the job trains.
        several: whether several GPUs train, or one.
    """
    way: Way = stack.sharding if several else "none"
    # FSDP computes in the dtype of mixed precision on what it gathers in that dtype.
    mixes = way in ("fsdp1", "fsdp2") and stack.mixed_precision == "bf16"
    dtype = "bfloat16" if mixes else stack.torch_dtype
    adapters = dtype if method == "full" or mixes or dtype == "float32" else stack.adapter_dtype
    targets = "default" if method == "full" else str(stack.lora_targets)
    dropout = method != "full" and stack.lora_dropout > 0
    layer_way = LayerWay(method, dtype, stack.mixed_precision, adapters, dropout, stack.gradient_checkpointing, targets)
    head_way = HeadWay(method == "full", dtype, stack.mixed_precision, stack.loss)
    layers, head = _layers(table, model, layer_way), table.moments(model, head_way)
    trainable = table.trainable(model, method, targets)
    if layers is None or head is None or trainable is None:
        key = layer_way if layers is None else head_way if head is None else (method, targets)
        return Outside((_asked(model, method, stack, key),), f": {table.problem(model, key) or 'it was not traced'}")
    if problem := table.problem(model, (method, targets, way)):
        return Outside((f"sharding {way!r} with lora_targets {targets!r} of {model}",), f": {problem}")
    if several and stack.optim == "adafactor" and way == "fsdp2":
        # transformers/optimization.py, Adafactor.step mixes its plain states with FSDP2's distributed tensors.
        return Outside(("optim 'adafactor' with sharding 'fsdp2'",), ": it does not step over distributed tensors")
    stored = _SIZES[stack.torch_dtype]
    if method != "full":
        stored = max(stored if method == "lora" else 0, _SIZES[stack.adapter_dtype])
    # accelerate/accelerator.py, prepare_model, and utils/fsdp_utils.py, fsdp2_prepare_model: trainable parameters
    # become float32, but for FSDP2 not in a model with 4-bit layers.
    upcast = mixes and (way == "fsdp1" or method != "qlora")
    bytes_ = Bytes(_SIZES[stack.torch_dtype], 4 if upcast else stored, _SIZES[dtype], 2 if mixes else stored)
    rank = None if method == "full" else stack.lora_r
    shapes = _shapes(trainable, rank, bytes_.trainable, flat=way == "fsdp1")
    return held(
        _joined(layers, head), trainable.units, bytes_, way, stack.gradient_accumulation, rank,
        optimizer_bytes(stack.optim, shapes),
    )  # fmt: skip


def _layers(table: ModelsTable, model: str, way: LayerWay) -> Floats | None:
    """Moments of the layers.

    Without checkpoints a layer lacks a few small tensors that recomputing it makes. Where they would decide, at some
    tokens, those moments count as well: so checkpoints never need more, and less than a thousandth is added.
    """
    found = table.moments(model, way)
    if found is None or way.gradient_checkpointing != "none":
        return found
    others = [table.moments(model, way._replace(gradient_checkpointing=c)) for c in ("reentrant", "non-reentrant")]
    kept = (Point.KEPT, Point.KEPT_OVER)  # of the way itself alone
    return np.concatenate([found, *(o[~np.isin(o[:, 0], kept)] for o in others if o is not None)])


def _asked(model: str, method: str, stack: Stack, key: tuple[object, ...]) -> str:
    """The settings that a missing figure is about."""
    named = key._asdict() if isinstance(key, (LayerWay, HeadWay)) else {"lora_targets": key[1]}
    about = [f"{name} {getattr(stack, name)!r}" for name in named if hasattr(stack, name)]
    if named.get("dropout"):
        about.append(f"lora_dropout {stack.lora_dropout:g}")
    return f"method {method!r} of {model} with {', '.join(about)}"


def _joined(layers: Floats, head: Floats) -> Floats:
    """Moments of the head on top of what the layers keep meanwhile, and all others."""
    points = layers[:, 0]
    heads = head.copy()
    forward = heads[:, 0] == Point.HEAD
    heads[forward, 1:5] += layers[points == Point.KEPT][0, 1:5]
    heads[~forward, 1:5] += layers[points == Point.KEPT_OVER][0, 1:5]
    return np.concatenate([layers[~np.isin(points, (Point.KEPT, Point.KEPT_OVER))], heads])


def _shapes(trainable: Trainable, rank: int | None, itemsize: int, *, flat: bool) -> list[Shape]:
    """Trainable parameters as the optimizer has them: FSDP1's are pieces of flat ones."""
    shapes = []
    for shape, count in trainable.shapes:
        dimensions = shape.dimensions
        if rank is not None:  # which the smallest dimension is: one, or as many as there are experts
            smallest = dimensions.index(min(dimensions))
            dimensions = tuple(size * (rank if i == smallest else 1) for i, size in enumerate(dimensions))
        if flat:
            dimensions = (math.prod(dimensions),)
        shapes += [Shape(dimensions, itemsize, shape.embedding)] * count
    return shapes
