"""Compose peak memory under any training stack from traced profiles, and cache it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from operator import attrgetter

import numpy as np

from autoconf.jobs.stack import Stack, Upcast
from autoconf.memory.checks import check_settings, check_tower
from autoconf.memory.dora import dora
from autoconf.memory.fragmentation import Fragmentation, OutsidePyTorch, kind_of
from autoconf.memory.fsdp_loading import fsdp_loading
from autoconf.memory.gpu_memory import GpuJob, GpuMemory, Loads
from autoconf.memory.host_memory import HostMemory
from autoconf.memory.needs import most_tokens, needed_bytes, sharing
from autoconf.memory.objectives import setup_of
from autoconf.memory.offloaded import inputs_on_host
from autoconf.memory.optimizers import OptimizerBytes, optimizer_bytes
from autoconf.memory.profile import NO_TOWER, Trainable, Units, optimizer_shapes
from autoconf.memory.profile_of_job import named_modules, not_traced, of_named, profile_of
from autoconf.memory.quantized import quantized_base
from autoconf.memory.reserve import Reserve
from autoconf.memory.sharding import Strategy, UnshardedJob, sharded
from autoconf.memory.some_layers import some_layers
from autoconf.memory.store import ModelsTable
from autoconf.memory.towers import towers
from autoconf.memory.trained import FROZEN, TrainedWhole, kept_by_layer
from autoconf.memory.units import GIB, Booleans, Floats, Integers
from autoconf.memory.unsharded_loading import Loaded, unsharded_loading
from autoconf.memory.ways import (
    BYTES,
    LOADS,
    RULES,
    becomes_float32,
    bytes_per_parameter,
    computes_in_16_bits,
    head_way,
    layer_way,
    strategy_of,
    upcast_of,
)
from autoconf.memory.zero import zero
from autoconf.memory.zero_job import ZERO, ZeroJob, flat_groups


class StackMemory:
    """Memory of models under any stack, with one row for each combination of model, method and stack.

    Rows are made on demand. Threads may share an object. It has no lock, because a forked process could inherit a lock
    that another thread holds; if two threads compose the same row, the first one is used.

    In all methods, ``rows`` has the row of each candidate, ``gpus`` its number of GPUs (>= 1), and ``tokens`` the
    tokens of a micro-batch on each GPU (>= 0); all have shape (candidates,).

    Args:
        table: the profiles of the models.
        rules: the rules by which memory is composed, up to ``RULES``.
        fragmentation: what a version has learned about it, if anything.
        outside: memory that is not PyTorch's, if a version knows it.
    """

    def __init__(
        self,
        table: ModelsTable,
        rules: int = RULES,
        fragmentation: Fragmentation | None = None,
        outside: OutsidePyTorch | None = None,
    ) -> None:
        self.table, self.rules, self.fragmentation, self.outside = table, rules, fragmentation, outside
        self._rows: dict[tuple[str, str, Stack], int] = {}
        self._jobs: dict[int, tuple[GpuJob, GpuJob]] = {}  # on one GPU, and on each of several
        self._of_any_allocator: dict[tuple[str, str, Stack, bool], GpuJob] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def forget(self) -> None:
        """Drop all rows; their numbers are not used again. No other thread may use one."""
        self._rows.clear()
        self._jobs.clear()
        self._of_any_allocator.clear()

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
            one, several = (self.gpu_job(*key, several=on) for on in (False, True))
            row = next(self._numbers)
            self._jobs[row] = one, several
            self._rows.setdefault(key, row)
        return self._rows[key]

    def gpu_job(self, model: str, method: str, stack: Stack, *, several: bool) -> GpuJob:
        """What the memory of a GPU of a job is composed of; arguments and errors as in ``gpu_job``."""
        if self.fragmentation is None:
            return gpu_job(self.table, model, method, stack, several=several, rules=self.rules)
        # The allocator changes fragmentation alone, and is a change that is tried for every job that does not fit.
        default = stack.allocator == "default"
        plain = stack if default else stack.model_copy(update={"allocator": "default"})
        key = model, method, plain, several
        job = self._of_any_allocator.get(key)
        if job is None:
            job = gpu_job(self.table, model, method, plain, several=several, rules=self.rules)
            self._of_any_allocator[key] = job
        return job.fragmented(self.fragmentation.surface(kind_of(stack, method, several=several)))

    def _on(self, row: int, gpus: int) -> GpuMemory:
        return self._jobs[row][gpus > 1].memory

    def _memories(self, rows: Integers, gpus: Integers) -> tuple[list[GpuMemory], Integers]:
        """The memories of candidates, and the one of each candidate by position."""
        used, of = _distinct(2 * rows + (gpus > 1))
        return [self._jobs[row // 2][row % 2].memory for row in used.tolist()], of

    def _each(
        self, rows: Integers, gpus: Integers, ask: Callable[[GpuMemory, Integers], Floats], *shape: int
    ) -> Floats:
        """Apply a function to the memory of each row and the indices of its candidates; ``shape`` is a result's."""
        answers = np.empty((len(rows), *shape))
        kinds = 2 * rows + (gpus > 1)
        order = np.argsort(kinds, kind="stable")
        starts = np.flatnonzero(np.diff(kinds[order])) + 1
        for alike in np.split(order, starts) if len(order) else ():
            answers[alike] = ask(self._on(int(rows[alike[0]]), int(gpus[alike[0]])), alike)
        return answers

    def resident_bytes(self, rows: Integers, gpus: Integers, *, states: bool = False) -> Floats:
        """The minimum that training holds: weights, and ``states``: optimizer states and one set of gradients.

        Returns:
            Bytes per GPU, shape (candidates,).
        """
        distinct, places = _distinct(rows)
        jobs = [self._jobs[row] for row in distinct.tolist()]
        of = attrgetter("states", "states_sharded") if states else attrgetter("whole", "sharded")
        resident = np.array([[of(job.resident) for job in both] for both in jobs], float)
        whole, sharded = resident.reshape(-1, 2, 2)[places, (gpus > 1).astype(int)].T
        per_node = np.array([several.per_node for _, several in jobs], np.int64)
        return np.asarray(whole + sharded / (sharing(gpus, per_node[places]) if per_node.any() else gpus))

    def falls_with_gpus(self, rows: Integers) -> Booleans:
        """Whether a job needs no more of each of several GPUs if there are more of them, by ``rules``, too.

        The GPUs of a node share evenly, so 12 of them on two nodes need more than 8 on one. Gradients that every GPU
        keeps whole weigh more if what they replace is not divided among the GPUs.
        """
        distinct, places = _distinct(rows)
        jobs = [self._jobs[row][True] for row in distinct.tolist()]
        falls = [not job.per_node and job.unsharded_gradients <= job.resident.sharded for job in jobs]
        return np.array(falls, bool)[places]

    def gradient_bytes(self, rows: Integers) -> Floats:
        """Bytes of gradients that FSDP keeps whole on every GPU between micro-batches; 0 without accumulation."""
        distinct, places = _distinct(rows)
        return np.array([self._jobs[row][True].unsharded_gradients for row in distinct.tolist()], float)[places]

    def loading_bytes(self, rows: Integers, gpus: Integers) -> Floats:
        """The most bytes that each GPU holds while the model is loaded; 0 if training holds more in any case."""
        distinct, places = _distinct(rows)
        jobs = [self._jobs[row] for row in distinct.tolist()]
        moments = [job.loading.moments for both in jobs for job in both]
        padded = np.zeros((len(moments), max(map(len, moments), default=0) or 1, 2))
        for index, some in enumerate(moments):
            padded[index, : len(some)] = np.array(some, float).reshape(-1, 2)
        whole, sharded = np.moveaxis(padded[2 * places + (gpus > 1)], -1, 0)
        per_node = np.array([several.per_node for _, several in jobs], np.int64)
        sharers = sharing(gpus, per_node[places])
        return np.asarray((whole + sharded / sharers[:, None]).max(axis=-1))

    def loading_texts(self, rows: Integers, gpus: Integers) -> list[str]:
        """What each GPU holds while the model is loaded, in words."""
        return [self._jobs[row][n > 1].loading.what for row, n in zip(rows.tolist(), gpus.tolist(), strict=True)]

    def host_bytes(self, rows: Integers, gpus: Integers, on_worker: Integers, tokens: Floats) -> Floats:
        """Bytes of the host of a worker that has ``on_worker`` of the GPUs, shape (candidates,)."""
        places = zip(*(of.tolist() for of in (rows, gpus, on_worker, tokens)), strict=True)
        return np.array([self._jobs[row][n > 1].host_bytes(n, on, each) for row, n, on, each in places], float)

    def peak_bytes(self, rows: Integers, gpus: Integers, tokens: Floats | Integers) -> Floats:
        """Peak bytes per GPU without the safety margin, shape (candidates,)."""
        return self._each(rows, gpus, lambda memory, which: memory.peak_bytes(gpus[which], tokens[which]))

    def needed_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB that a GPU must have, including the safety margin, shape (candidates,)."""
        return needed_bytes(*self._memories(rows, gpus), gpus, tokens, reserve) / GIB

    def floors_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, kept: Floats) -> Floats:
        """GiB that some of the parts take at least, as ``GpuMemory.floors``, shape (floors, candidates)."""

        def ask(memory: GpuMemory, which: Integers) -> Floats:
            return memory.floors(gpus[which], tokens[which], kept).T

        return self._each(rows, gpus, ask, len(kept)).T / GIB

    def most_tokens(self, rows: Integers, gpus: Integers, gib: Floats, reserve: Reserve) -> Floats:
        """The tokens at which ``needed_gib`` reaches limits in GiB, shape (limits, candidates), up to rounding errors.

        Returns:
            Tokens, 0 if none fit, or infinity if no number of tokens needs as much. Shape (limits, candidates).
        """
        return most_tokens(*self._memories(rows, gpus), gpus, gib * GIB, reserve)

    def deciding_gib(self, rows: Integers, gpus: Integers, tokens: Floats | Integers, reserve: Reserve) -> Floats:
        """GiB at the moment that decides ``needed_gib``, and what the margin depends on, shape (candidates, 2)."""
        deciding = self._each(
            rows, gpus, lambda memory, which: memory.deciding_bytes(gpus[which], tokens[which], reserve), 2
        )
        return deciding / GIB

    def parts_gib(self, row: int, gpus: int, tokens: float, reserve: Reserve) -> dict[str, float]:
        """GiB of each part for one candidate, with the safety margin as ``reserve``."""
        return {name: value / GIB for name, value in self._on(row, gpus).parts(gpus, tokens, reserve).items()}


def _distinct(rows: Integers) -> tuple[Integers, Integers]:
    """The distinct rows, ascending, and the place of each row among them, as np.unique finds them by sorting."""
    found = np.zeros(rows.max(initial=-1) + 1, bool)
    found[rows] = True
    return np.flatnonzero(found), (np.cumsum(found) - 1)[rows]


def gpu_memory(
    table: ModelsTable, model: str, method: str, stack: Stack, *, several: bool, rules: int = RULES
) -> GpuMemory:
    """Compose the memory of a GPU of a job; arguments and errors as in ``gpu_job``."""
    return gpu_job(table, model, method, stack, several=several, rules=rules).memory


def gpu_job(table: ModelsTable, model: str, method: str, stack: Stack, *, several: bool, rules: int = RULES) -> GpuJob:
    """Look up what the memory of a GPU of a job is composed of.

    Args:
        table: the profiles of models.
        model: a model of the table.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        several: whether several GPUs train, or one.
        rules: the rules by which memory is composed, up to ``RULES``.

    Raises:
        Unsupported: there is no profile for it.
    """
    tower = towers().get(model)
    if tower is not None:
        check_tower(tower, model, method, stack, strategy_of(stack, several))
        model = tower.language_model
    strategy, named = strategy_of(stack, several), named_modules(table, model, method, stack)
    if named is not None:
        stack = stack.model_copy(update={"lora_targets": named.group})
    check_settings(table, model, method, stack, strategy)
    layers, head = layer_way(stack, method, several=several, rules=rules), head_way(stack, method, several=several)
    trainable, full = table.trainable(model, method, layers.lora_targets), table.trainable(model, "full", "default")
    if trainable is None:
        raise not_traced(table, model, method, stack, (method, layers.lora_targets))
    needs_full = strategy in ZERO or stack.objective != "sft" or method == "qlora" or stack.trained_modules != "none"
    if full is None and needs_full:
        raise not_traced(table, model, method, stack, ("full", "default"))
    rank = None if method == "full" else stack.lora_r + stack.use_dora
    per_parameter = bytes_per_parameter(stack, method, strategy)
    objective = setup_of(stack, method, full, head, per_parameter, strategy)
    some = some_layers(table, model, stack, layers.lora_targets, named) if rank is not None else None
    profile = profile_of(table, model, method, stack, layers, head, objective, rules, some)
    if named is not None:
        profile = partial(of_named, profile, named, trainable, BYTES[layers.adapter_dtype])
        trainable = named.trainable(trainable)
    if stack.use_dora:
        profile = partial(dora(table, model, stack, strategy, layers, named, some).moments, profile)
    trainable = objective.of_units(trainable if some is None else some.trainable(trainable))
    loaded = full or trainable
    if tower is not None:
        trainable, loaded = tower.with_language_model(trainable, loaded, quantized=method == "qlora")
    whole = _trained_whole(stack, method, full, strategy)
    if rank is not None and whole.parameters:
        profile = partial(whole.moments, profile, rank, kept_by_layer(table, model, stack, layers))
    base = quantized_base(stack.quantization, trainable.units, full, BYTES[layers.torch_dtype])
    moments: Callable[[], Floats] = partial(base.moments, profile, recomputes=stack.gradient_checkpointing != "none")
    if tower is not None:
        moments = tower.with_images(moments, layers, stack, (per_parameter.frozen_computing, base.per_weight), strategy)
    job = UnshardedJob(
        base.units(trainable.units), per_parameter, stack.gradient_accumulation, rank,
        _optimizer(stack, trainable, rank, per_parameter.trainable, strategy, whole),
        upcast=_upcast_bytes(base.units(trainable.units), upcast_of(stack, strategy)),
        keeps_gathered=stack.keeps_gathered, per_node=stack.gpus_per_node if stack.is_hybrid else 0,
        keeps_reduced=stack.is_hybrid and strategy == "fsdp2",
        offload=stack.offload if strategy != "none" else "none",
        reference=objective.reference, per_quantized=base.per_weight, reduces_each=stack.gradient_sync == "every",
        whole=whole,
        tower=NO_TOWER if tower is None else tower.units(stack, quantized=method == "qlora"),
    )  # fmt: skip
    host = HostMemory(job, strategy, stack, loaded, trainable, inputs=inputs_on_host(table, model, stack, layers, head))
    return _of_unsharded(job, moments, strategy, stack, trainable, full, host, loads=rules >= LOADS, several=several)


def _of_unsharded(
    job: UnshardedJob,
    moments: Callable[[], Floats],
    strategy: Strategy,
    stack: Stack,
    trainable: Trainable,
    full: Trainable | None,
    host: HostMemory,
    *,
    loads: bool,
    several: bool,
) -> GpuJob:
    """What a GPU of a job holds, given its moments without sharding and its parameters."""
    loading = _loads(job, strategy, stack, full) if loads else Loads()
    if strategy not in ZERO:
        resident, gradients, host_bytes = job.resident(strategy), job.unsharded_gradients(strategy), host.worker_bytes
        return GpuJob(
            resident, gradients, lambda: sharded(moments(), job, strategy), loading, host_bytes, per_node=job.per_node
        )
    assert full is not None
    zero_job = ZeroJob.of(job, trainable, full, stack, several=several)
    on_host = host.under(zero_job).worker_bytes
    return GpuJob(zero_job.resident(strategy), 0.0, lambda: zero(moments(), zero_job, strategy), loading, on_host)


def _loads(job: UnshardedJob, strategy: Strategy, stack: Stack, base: Trainable | None) -> Loads:
    """What a GPU holds while a model is loaded. ``base``: all parameters of the model, if they are known."""
    if base is None or (strategy == "none" and not job.units.quantized):
        return Loads()  # training holds as much
    loaded = BYTES[stack.torch_dtype]
    if strategy not in ("fsdp1", "fsdp2"):
        model = Loaded(job, base.shapes, loaded, BYTES[stack.adapter_dtype])
        return Loads(*unsharded_loading(model, stack, strategy))
    what = "its shards, and one unit of FSDP whole"
    if job.units.quantized:
        # transformers/quantizers/quantizer_bnb_4bit.py: a weight is quantized on the GPU.
        what = "all 4-bit weights before FSDP shards them"
    elif stack.loading == "gpu":
        what = "all weights before FSDP shards them"
    moments = fsdp_loading(job, strategy, stack.loading, base.shapes, loaded, shard_adapters=stack.shard_adapters)
    return Loads(what, moments)


def _trained_whole(stack: Stack, method: str, full: Trainable | None, strategy: Strategy) -> TrainedWhole:
    """The embeddings and the head that are trained beside adapters."""
    if stack.trained_modules == "none":
        return FROZEN
    assert full is not None
    loaded = 4 if upcast_of(stack, strategy) == "all" else BYTES[stack.torch_dtype]
    stored = 4 if becomes_float32(stack, method, strategy) else loaded
    computing = 2 if computes_in_16_bits(stack, strategy) else stored
    stored = computing if strategy in ZERO else stored
    return TrainedWhole.of(stack, full, stored=stored, computing=computing)


def _optimizer(
    stack: Stack, trainable: Trainable, rank: int | None, itemsize: int, strategy: Strategy, whole: TrainedWhole
) -> OptimizerBytes:
    """The bytes of the optimizer, summed over all GPUs."""
    if strategy in ZERO:
        return optimizer_bytes(stack.optim, flat_groups(trainable, rank, whole.parameters))
    flat = strategy == "fsdp1"
    shapes, copies = optimizer_shapes(trainable, rank, itemsize, flat=flat), whole.shapes(flat=flat)
    counts = [count for _, count in trainable.shapes] + [1] * len(copies)
    return optimizer_bytes(stack.optim, [*shapes, *copies], counts)


def _upcast_bytes(units: Units, upcast: Upcast) -> int:
    """Bytes that unquantized parameters take in addition when they become float32; the final norm's are negligible."""
    upcasts = {"none": 0, "norms": units.frozen - units.root_frozen, "all": units.frozen}[upcast]
    return upcasts * (BYTES["float32"] - BYTES["bfloat16"])
