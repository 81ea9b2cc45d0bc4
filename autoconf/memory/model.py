"""Compose peak memory under any training stack from traced profiles, and cache it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.optimizers import Shape, optimizer_bytes
from autoconf.memory.profile import HeadWay, LayerWay, Point, Trainable
from autoconf.memory.reserve import Reserve
from autoconf.memory.sharding import BytesPerParameter, Strategy, UnshardedJob, sharded
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Floats, Integers, Unsupported
from autoconf.memory.zero import ZERO, ZeroJob, zero
from autoconf.memory.zero_parameters import ModelSizes, model_sizes

_BYTES = {"bfloat16": 2, "float32": 4}


class JobMemory(NamedTuple):
    """Memory of each GPU of a job: on one GPU, and on several."""

    one_gpu: GpuMemory
    several_gpus: GpuMemory

    def on(self, gpus: int) -> GpuMemory:
        """The memory of each GPU for this number of GPUs."""
        return self.one_gpu if gpus == 1 else self.several_gpus


class StackMemory:
    """Memory of models under any stack, with one row for each combination of model, method and stack.

    Rows are made on demand. Threads may share an object. It has no lock, because a forked process could inherit a lock
    that another thread holds; if two threads compose the same row, the first one is used.

    In all methods, ``rows`` has the row of each candidate, ``gpus`` its number of GPUs (>= 1), and ``tokens`` the
    tokens of a micro-batch on each GPU (>= 0); all have shape (candidates,).

    Args:
        table: the profiles of the models.
    """

    def __init__(self, table: ModelsTable) -> None:
        self.table = table
        self._rows: dict[tuple[str, str, Stack], int] = {}
        self._jobs: dict[int, JobMemory] = {}
        self._numbers = itertools.count()

    def row(self, model: str, method: str, stack: Stack) -> int:
        """The row of a job, made if needed.

        Args:
            model: a model of the table.
            method: ``full``, ``lora`` or ``qlora``.
            stack: the training stack.

        Raises:
            Unsupported: there is no profile for it.
        """
        key = (model, method, stack)
        if key not in self._rows:
            one, several = (gpu_memory(self.table, *key, several=several) for several in (False, True))
            row = next(self._numbers)
            self._jobs[row] = JobMemory(one, several)
            self._rows.setdefault(key, row)
        return self._rows[key]

    def _each(
        self, rows: Integers, gpus: Integers, ask: Callable[[GpuMemory, Integers], Floats], *shape: int
    ) -> Floats:
        """Apply a function to the memory of each row and the indices of its candidates; ``shape`` is a result's."""
        answers = np.empty((len(rows), *shape))
        kinds = 2 * rows + (gpus > 1)
        order = np.argsort(kinds, kind="stable")
        starts = np.flatnonzero(np.diff(kinds[order])) + 1
        for alike in np.split(order, starts) if len(order) else ():
            answers[alike] = ask(self._jobs[int(rows[alike[0]])].on(int(gpus[alike[0]])), alike)
        return answers

    def resident_bytes(self, rows: Integers, gpus: Integers) -> Floats:
        """The minimum that training holds: weights, optimizer states and one set of gradients, sharded if possible.

        Returns:
            Bytes per GPU, shape (candidates,).
        """
        return self._each(rows, gpus, lambda memory, which: memory.resident.on_each_gpu(gpus[which]))

    def gradient_bytes(self, rows: Integers) -> Floats:
        """Bytes of gradients that FSDP keeps whole on every GPU between micro-batches; 0 without accumulation."""
        distinct, places = np.unique(rows, return_inverse=True)
        return np.array([self._jobs[row].several_gpus.unsharded_gradients for row in distinct.tolist()], float)[places]

    def peak_bytes(self, rows: Integers, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes per GPU without the safety margin, shape (candidates,)."""
        return self._each(rows, gpus, lambda memory, which: memory.peak_bytes(gpus[which], tokens[which]))

    def needed_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB that a GPU must have, including the safety margin, shape (candidates,)."""
        needed = self._each(rows, gpus, lambda memory, which: memory.needed_bytes(gpus[which], tokens[which], reserve))
        return needed / GIB

    def deciding_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB at the moment that decides ``needed_gib``, and the part that grows with tokens, shape (candidates, 2)."""
        deciding = self._each(
            rows, gpus, lambda memory, which: memory.deciding_bytes(gpus[which], tokens[which], reserve), 2
        )
        return deciding / GIB

    def parts_gib(self, row: int, gpus: int, tokens: float, reserve: Reserve) -> dict[str, float]:
        """GiB of each part for one candidate, with the safety margin as ``reserve``."""
        parts = self._jobs[row].on(gpus).parts(gpus, tokens, reserve)
        return {name: value / GIB for name, value in parts.items()}


def gpu_memory(table: ModelsTable, model: str, method: str, stack: Stack, *, several: bool) -> GpuMemory:
    """Compose the memory of a GPU of a job.

    Args:
        table: the profiles of models.
        model: a model of the table.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        several: whether several GPUs train, or one.

    Raises:
        Unsupported: there is no profile for it.
    """
    strategy = _strategy(stack, several)
    layers, head = layer_way(stack, method, several=several), head_way(stack, method, several=several)
    moments, trainable = _profile(table, model, method, stack, layers, head)
    _check_sharding(table, model, method, stack, strategy)
    rank = None if method == "full" else stack.lora_r
    per_parameter = _bytes_per_parameter(stack, method, strategy)
    if strategy in ZERO:
        optimizer = optimizer_bytes(stack.optim, _flat_groups(trainable, rank))
    else:
        shapes = _shapes(trainable, rank, per_parameter.trainable, flat=strategy == "fsdp1")
        optimizer = optimizer_bytes(stack.optim, shapes)
    job = UnshardedJob(moments, trainable.units, per_parameter, stack.gradient_accumulation, rank, optimizer)
    if strategy in ZERO:
        return zero(_zero_job(table, model, method, stack, trainable, job), strategy)
    return sharded(job, strategy)


def _zero_job(
    table: ModelsTable, model: str, method: str, stack: Stack, trainable: Trainable, job: UnshardedJob
) -> ZeroJob:
    """Add what ZeRO's memory depends on: the parameters in their order, and the sizes of buckets."""
    full = table.trainable(model, "full", "default")
    if full is None:
        raise _not_traced(table, model, method, stack, ("full", "default"))
    layers = max(1, round((full.units.trainable - full.units.root_trainable) / full.units.layer_trainable))
    hidden = next(shape.dimensions[-1] for shape, _ in full.shapes if shape.embedding)
    sizes = model_sizes(full.shapes, layers)
    trained = sizes if job.rank is None else model_sizes(trainable.shapes, layers, job.rank)
    if job.rank is not None:
        sizes = model_sizes(_packed(full.shapes) if job.units.quantized else full.shapes, layers)
        of_layers = ((*base, *adapters) for base, adapters in zip(sizes.layers, trained.layers, strict=True))
        sizes = ModelSizes(sizes.embeddings, tuple(of_layers), sizes.head)
    return ZeroJob(
        job,
        trained,
        sizes,
        stack.zero_buckets.with_hidden_size(hidden),
        recomputes=stack.gradient_checkpointing != "none",
        groups=len(_flat_groups(trainable, job.rank)),
    )


def _packed(shapes: Sequence[tuple[Shape, int]]) -> list[tuple[Shape, int]]:
    """Shapes of parameters in 4 bits that are stored in bfloat16: matrices of layers, but not experts in one tensor."""
    return [
        (Shape((shape.elements // 4,), 2) if count > 1 and len(shape.dimensions) == 2 and not shape.embedding else shape, count)
        for shape, count in shapes
    ]


def _flat_groups(trainable: Trainable, rank: int | None) -> list[Shape]:
    """The optimizer's parameters under ZeRO: one flat float32 parameter with and one without weight decay."""
    # transformers/trainer.py, get_decay_parameter_names: not biases and norms.
    elements = {True: 0, False: 0}
    for shape, count in trainable.shapes:
        elements[len(shape.dimensions) > 1] += shape.elements * count * (rank or 1)
    return [Shape((size,), 4) for size in elements.values() if size]


def layer_way(stack: Stack, method: str, *, several: bool) -> LayerWay:
    """The settings of a stack that change the memory of decoder layers.

    Args:
        stack: the training stack.
        method: ``full``, ``lora`` or ``qlora``.
        several: whether several GPUs train, or one.

    >>> layer_way(Stack(sharding="fsdp2", torch_dtype="float32", mixed_precision="bf16"), "full", several=True)
    ... # doctest: +NORMALIZE_WHITESPACE
    LayerWay(method='full', torch_dtype='bfloat16', mixed_precision='bf16', adapter_dtype='bfloat16', dropout=False,
             gradient_checkpointing='non-reentrant', lora_targets='default')
    """
    strategy, full = _strategy(stack, several), method == "full"
    dtype = _computing_dtype(stack, strategy)
    follow = full or dtype == "float32" or _computes_in_bf16(stack, strategy)
    return LayerWay(
        method=method,
        torch_dtype=dtype,
        mixed_precision=_autocast(stack, strategy),
        adapter_dtype=dtype if follow else stack.adapter_dtype,
        dropout=not full and stack.lora_dropout > 0,
        gradient_checkpointing=stack.gradient_checkpointing,
        lora_targets=_targets(stack, method),
    )


def head_way(stack: Stack, method: str, *, several: bool) -> HeadWay:
    """The settings of a stack that change the memory of head and loss; arguments as in ``layer_way``.

    >>> head_way(Stack(loss="chunked"), "lora", several=False)
    HeadWay(trains=False, torch_dtype='bfloat16', mixed_precision='no', loss='chunked')
    """
    strategy = _strategy(stack, several)
    return HeadWay(method == "full", _computing_dtype(stack, strategy), _autocast(stack, strategy), stack.loss)


def _strategy(stack: Stack, several: bool) -> Strategy:
    return stack.sharding if several else "none"


def _computes_in_bf16(stack: Stack, strategy: Strategy) -> bool:
    """Whether FSDP gathers parameters, or DeepSpeed casts them, to the dtype of mixed precision."""
    return strategy in ("fsdp1", "fsdp2", *ZERO) and stack.mixed_precision == "bf16"


def _computing_dtype(stack: Stack, strategy: Strategy) -> str:
    return "bfloat16" if _computes_in_bf16(stack, strategy) else stack.torch_dtype


def _autocast(stack: Stack, strategy: Strategy) -> str:
    # accelerate/accelerator.py, Accelerator.__init__: native_amp is off under DeepSpeed.
    return "no" if strategy in ZERO else stack.mixed_precision


def _targets(stack: Stack, method: str) -> str:
    return "default" if method == "full" else str(stack.lora_targets)


def _profile(
    table: ModelsTable, model: str, method: str, stack: Stack, layers_as: LayerWay, head_as: HeadWay
) -> tuple[Floats, Trainable]:
    """The moments of layers and head together, shape (moments, 9), and the trainable parameters."""
    layers = _layers(table, model, layers_as)
    if layers is None:
        raise _not_traced(table, model, method, stack, layers_as)
    head = table.moments(model, head_as)
    if head is None:
        raise _not_traced(table, model, method, stack, head_as)
    trainable = table.trainable(model, method, layers_as.lora_targets)
    if trainable is None:
        raise _not_traced(table, model, method, stack, (method, layers_as.lora_targets))
    return _joined(layers, head), trainable


def _layers(table: ModelsTable, model: str, way: LayerWay) -> Floats | None:
    """Moments of the layers.

    Without checkpointing a layer lacks a few small tensors that recomputation creates, so for some numbers of tokens
    checkpointing would seem to need more memory. The moments with checkpointing are therefore included as well, which
    adds less than a thousandth.
    """
    found = table.moments(model, way)
    if found is None or way.gradient_checkpointing != "none":
        return found
    others = [table.moments(model, way._replace(gradient_checkpointing=c)) for c in ("reentrant", "non-reentrant")]
    kept = (Point.KEPT, Point.KEPT_OVER)  # those without checkpoints only
    return np.concatenate([found, *(o[~np.isin(o[:, 0], kept)] for o in others if o is not None)])


def _joined(layers: Floats, head: Floats) -> Floats:
    """All moments of the layers, and the moments of the head plus the tensors that the layers keep meanwhile."""
    points = layers[:, 0]
    heads = head.copy()
    forward = heads[:, 0] == Point.HEAD
    heads[forward, 1:5] += layers[points == Point.KEPT][0, 1:5]
    heads[~forward, 1:5] += layers[points == Point.KEPT_OVER][0, 1:5]
    return np.concatenate([layers[~np.isin(points, (Point.KEPT, Point.KEPT_OVER))], heads])


def _not_traced(
    table: ModelsTable, model: str, method: str, stack: Stack, key: LayerWay | HeadWay | tuple[str, str]
) -> Unsupported:
    """The error that names the settings without a profile, and the reason."""
    named = key._asdict() if isinstance(key, (LayerWay, HeadWay)) else {"lora_targets": key[1]}
    about = [f"{name} {getattr(stack, name)!r}" for name in named if hasattr(stack, name)]
    if named.get("dropout"):
        about.append(f"lora_dropout {stack.lora_dropout:g}")
    settings = f"method {method!r} of {model} with {', '.join(about)}"
    return Unsupported([settings], f": {table.problem(model, key) or 'it was not traced'}")


def _check_sharding(table: ModelsTable, model: str, method: str, stack: Stack, strategy: Strategy) -> None:
    """Raise ``Unsupported`` if the settings of a job do not work together under a strategy."""
    targets = _targets(stack, method)
    if problem := table.problem(model, (method, targets, strategy)):
        raise Unsupported([f"sharding {strategy!r} with lora_targets {targets!r} of {model}"], f": {problem}")
    if strategy in ZERO and stack.mixed_precision == "no" and stack.torch_dtype == "bfloat16":
        # deepspeed/runtime/engine.py, get_data_types: without its section bf16 it takes the model for a float32 one.
        raise Unsupported(
            [f"sharding {strategy!r} with torch_dtype 'bfloat16' and mixed_precision 'no'"],
            ": DeepSpeed trains in bfloat16 with mixed_precision 'bf16'",
        )
    if stack.optim == "adafactor" and strategy == "fsdp2":
        # transformers/optimization.py, Adafactor.step mixes its plain states with FSDP2's distributed tensors.
        raise Unsupported(["optim 'adafactor' with sharding 'fsdp2'"], ": it does not step over distributed tensors")


def _bytes_per_parameter(stack: Stack, method: str, strategy: Strategy) -> BytesPerParameter:
    mixes = _computes_in_bf16(stack, strategy)
    if strategy in ZERO:
        # deepspeed/runtime/engine.py, _cast_module_mixed_precision: all parameters.
        itemsize = _BYTES[_computing_dtype(stack, strategy)]
        return BytesPerParameter(itemsize, itemsize, itemsize, itemsize)
    frozen = _BYTES[stack.torch_dtype]
    adapters = _BYTES[stack.adapter_dtype]
    stored = {"full": frozen, "lora": max(frozen, adapters), "qlora": adapters}[method]
    # accelerate/accelerator.py, prepare_model, and utils/fsdp_utils.py, fsdp2_prepare_model: trainable parameters
    # become float32, except for FSDP2 with 4-bit layers.
    upcast = mixes and (strategy == "fsdp1" or method != "qlora")
    return BytesPerParameter(
        frozen=frozen,
        trainable=4 if upcast else stored,
        frozen_computing=_BYTES[_computing_dtype(stack, strategy)],
        trainable_computing=2 if mixes else stored,
    )


def _shapes(trainable: Trainable, rank: int | None, itemsize: int, *, flat: bool) -> Sequence[Shape]:
    """Shapes of the trainable parameters that the optimizer sees. With FSDP1 they are pieces of flat parameters."""
    shapes: list[Shape] = []
    for shape, count in trainable.shapes:
        dimensions = shape.dimensions
        if rank is not None:  # the rank is the smallest dimension: one, or as many as there are experts
            smallest = dimensions.index(min(dimensions))
            dimensions = tuple(size * (rank if i == smallest else 1) for i, size in enumerate(dimensions))
        if flat:
            dimensions = (math.prod(dimensions),)
        shapes += [Shape(dimensions, itemsize, shape.embedding)] * count
    return shapes
