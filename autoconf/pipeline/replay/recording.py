"""Recordings of jobs, for any number of tokens and GPUs, at full depth from a short model.

Every allocation is affine in tokens, and under FSDP2 in 1 / GPUs. So a job is recorded for two numbers of tokens, and
under FSDP2 for two numbers of GPUs; order, blocks and streams must be equal, only sizes differ. The recorded model has
a few layers, of which a middle one is repeated (``extend``). Under FSDP1 the number of GPUs decides which parameters
the first GPU has a part of, so that each number has a recording of its own. DDP's buckets hold the gradients of several
layers or of parts of them, and do not repeat: its jobs are recorded at full depth.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from autoconf.memory.replay import Action, Event, Program
from autoconf.memory.units import Floats, Integers
from autoconf.pipeline.replay.event_arrays import EventArrays, as_arrays
from autoconf.pipeline.replay.extend import extend
from autoconf.pipeline.replay.record import Batches, record
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import TraceError

_TOKENS = (1024, 4096)  # two numbers of tokens
_SAMPLES = 2  # of a micro-batch; a single one saves some copies
_GPUS = (2, 8)
_FLAG_BYTES = 16
MICRO_BATCHES = 2  # of an update with accumulation: any further one repeats the second
# Layers of short models. FSDP1 waits for what it gathered three units before, so more layers differ from a middle one.
_SHORT, _SHORT_FSDP1 = 6, 10


@dataclass(frozen=True)
class Recording:
    """The events of a job, with sizes as functions of tokens and GPUs.

    Attributes:
        actions: this and the next two have shape (events,), as in ``EventArrays``.
        blocks: numbers of allocations.
        streams: streams.
        sizes: bytes, shape (events, 3): constant, per token of a GPU, and divided by the GPUs.
    """

    actions: Integers
    blocks: Integers
    streams: Integers
    sizes: Floats

    def events(self, tokens: int, gpus: int = 1) -> EventArrays:
        """The events for a size.

        Args:
            tokens: tokens of a micro-batch on each GPU, >= 1.
            gpus: number of GPUs, >= 1; under FSDP1 the one of the recorded job.
        """
        nbytes = np.ceil((self.sizes @ (1.0, tokens, 1 / gpus)).round(3)).astype(np.int64)
        return EventArrays(self.actions, self.blocks, nbytes, self.streams)


def recording(job: TrainingSetup) -> Recording:
    """Record a job; unless it runs under FSDP1, its number of GPUs says only whether there are several.

    Raises:
        TraceError: the job cannot be recorded, or the order of its allocations depends on its size, as with a loss over
            chunks of tokens.
    """
    layers = _layers(job)
    divides = job.gpus > 1 and job.stack.sharding == "fsdp2"
    job = replace(job, gpus=_GPUS[0]) if divides else job
    program = _recorded(job, _TOKENS[0], layers)
    one = as_arrays(program.events)
    more_tokens = _alike(one, _recorded(job, _TOKENS[1], layers))
    per_token = (more_tokens.nbytes - one.nbytes) / (_TOKENS[1] - _TOKENS[0])
    shared = np.zeros(len(one.nbytes))
    if divides:
        more_gpus = _alike(one, _recorded(replace(job, gpus=_GPUS[1]), _TOKENS[0], layers))
        shared = (one.nbytes - more_gpus.nbytes) / (1 / _GPUS[0] - 1 / _GPUS[1])
    constant = one.nbytes - per_token * _TOKENS[0] - shared / job.gpus
    return _at_full_depth(job, program, layers, np.stack([constant, per_token, shared], axis=1))


def recorded_at(job: TrainingSetup, tokens: int) -> EventArrays:
    """Record a job of any loss for one size only.

    Args:
        job: the training setup.
        tokens: tokens of a micro-batch of two samples on each GPU, >= 2 and even.

    Raises:
        TraceError: the job cannot be recorded.
    """
    program = _recorded(job, tokens, _layers(job))
    constant = as_arrays(program.events).nbytes.astype(np.float64)
    sizes = np.stack([constant, np.zeros_like(constant), np.zeros_like(constant)], axis=1)
    return _at_full_depth(job, program, _layers(job), sizes).events(tokens)


def _layers(job: TrainingSetup) -> int | None:
    """The layers of the short model, or ``None`` if the job has to be recorded at full depth."""
    fsdp1, ddp = (job.gpus > 1 and job.stack.sharding == sharding for sharding in ("fsdp1", "ddp"))
    short = _SHORT_FSDP1 if fsdp1 else _SHORT
    repeats = len(set(job.architecture.kinds)) == 1 and not ddp
    return short if repeats and job.architecture.layers > short else None


def _at_full_depth(job: TrainingSetup, program: Program, layers: int | None, sizes: Floats) -> Recording:
    """Repeat a middle layer of a program; ``sizes`` as in ``Recording``."""
    events = as_arrays(program.events)
    if layers is None:
        return Recording(events.actions, events.blocks, events.streams, sizes)
    depth = job.architecture.layers
    sizes = sizes + _warmup(program, depth - layers)
    source, blocks = extend(program, layers, depth)
    return Recording(events.actions[source], blocks, events.streams[source], sizes[source])


def _warmup(program: Program, further: int) -> Floats:
    """Bytes that further layers add to transformers' first allocation, which is as large as the quantized model.

    transformers/modeling_utils.py, caching_allocator_warmup.

    Returns:
        Shape (events, 3), as ``Recording.sizes``.
    """
    more = np.zeros((len(program.events), 3))
    for index, event in enumerate(program.events):
        if program.places[event.place].op == "caching_allocator_warmup" and event.nbytes:
            more[index, 0] = further * _middle_layer_bytes(program)
    return more


def _middle_layer_bytes(program: Program) -> int:
    """Bytes of the weights of a middle layer of a short model, as loaded."""
    middle = f"layers.{_SHORT // 2}."
    quantized: dict[str, int] = {}
    copied: dict[str, int] = {}
    for event in program.events:
        place = program.places[event.place]
        if event.action == Action.ALLOCATE and place.when == "loading" and middle in f"{place.module}.":
            found = quantized if place.op.startswith("bitsandbytes.quantize_4bit") else copied
            found[place.module] = max(found.get(place.module, 0), event.nbytes)
    return sum({**copied, **quantized}.values())


def _recorded(job: TrainingSetup, tokens: int, layers: int | None) -> Program:
    micro_batches = MICRO_BATCHES if job.stack.gradient_accumulation else 1
    return canonical(record(job, Batches(_SAMPLES, tokens // _SAMPLES, micro_batches), layers=layers))


def canonical(program: Program) -> Program:
    """Leave out what differs between recordings of one job, and cannot matter.

    The order of releases without an allocation in between has no effect; that of autocast's cached copies is random
    (aten/src/ATen/autocast_mode.cpp, clear_cache). Values of a few bytes that are held for a moment while loading are
    partly made by the first job of a process only, as by torch/distributed/fsdp/_flat_param.py.
    """
    flags = _flags(program)
    numbers: dict[int, int] = {}
    kept: list[Event] = []
    for event in program.events:
        if event.action in (Action.MARK, Action.WAIT) or event.block < 0:
            kept.append(event)
        elif event.block not in flags:
            kept.append(event._replace(block=numbers.setdefault(event.block, len(numbers))))
    events: list[Event] = []
    for is_free, group in itertools.groupby(kept, key=lambda event: event.action == Action.FREE):
        run = list(group)
        events += sorted(run, key=lambda event: event.block) if is_free else run
    return Program(events, program.places)


def _flags(program: Program) -> set[int]:
    freed = {event.block for event in program.events if event.action == Action.FREE}
    return {
        event.block
        for event in program.events
        if event.action == Action.ALLOCATE
        and event.nbytes < _FLAG_BYTES
        and event.block in freed
        and program.places[event.place].when == "loading"
    }


def _alike(one: EventArrays, program: Program) -> EventArrays:
    """The events of a program that must differ from another one's only in sizes."""
    other = as_arrays(program.events)
    if not all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("actions", "blocks", "streams")):
        raise TraceError("the order of allocations depends on the size of the job")
    return other
