"""Replay the allocations of a program: reserved memory, and the smallest capacity on which the program runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from autoconf.memory.allocator import Allocator
from autoconf.memory.allocator_blocks import Block
from autoconf.memory.allocator_settings import MIB, AllocatorSettings
from autoconf.memory.out_of_memory import OutOfMemory
from autoconf.memory.units import Integers


class Action(IntEnum):
    """An action of a program on a block or a stream."""

    ALLOCATE = 0
    FREE = 1
    RECORD_STREAM = 2  # the stream of the event uses the block
    SYNCHRONIZE = 3  # the program waits for the stream
    EMPTY_CACHE = 4
    MARK = 5  # the program records the positions of its streams; the event's block is the number of the mark
    WAIT = 6  # the program waits until the streams have reached a mark


class Place(NamedTuple):
    """The place in a program at which a block was allocated.

    >>> str(Place("step 1", "backward", "model.layers.3", "aten.mm.default"))
    'step 1, backward, model.layers.3, aten.mm.default'
    """

    when: str
    part: str
    module: str
    op: str

    def __str__(self) -> str:
        return ", ".join(filter(None, self))


class Event(NamedTuple):
    """One action of a program.

    Args:
        action: the action.
        block: number of the allocation, or of the mark; -1 for an action on a stream.
        nbytes: allocated bytes, or 0.
        stream: stream of the allocation, stream that uses the block, or stream that the program waits for.
        place: index into the places of the program.
    """

    action: Action
    block: int
    nbytes: int = 0
    stream: int = 0
    place: int = 0


@dataclass(frozen=True)
class Program:
    """The allocations of a program on one GPU, in their order."""

    events: Sequence[Event]
    places: Sequence[Place] = field(default=(Place("", "", "", ""),))

    def place(self, event: int) -> Place:
        return self.places[self.events[event].place]


@dataclass(frozen=True)
class Replayed:
    """The result of a replay, in bytes.

    Attributes:
        allocated: peak of allocated memory.
        reserved: peak of reserved memory, over all segments.
        failed_at: index of the event that ran out of memory; ``None`` if the program ran to its end.
        error: PyTorch's message for it.
        retries: how often all free segments were released because ``cudaMalloc`` failed.
        timeline: allocated and reserved after each event, shape (events, 2); empty unless requested.
        failure: the error, with the memory at that moment.
    """

    allocated: int
    reserved: int
    failed_at: int | None
    error: str
    retries: int
    timeline: Integers
    failure: OutOfMemory | None = None


def replay(
    program: Program,
    capacity: int | None = None,
    settings: AllocatorSettings | None = None,
    *,
    total: int | None = None,
    timeline: bool = False,
) -> Replayed:
    """Run a program's allocations through the allocator.

    Args:
        program: the program to run.
        capacity: bytes of the GPU that PyTorch can reserve; ``None`` for no limit.
        settings: settings of the allocator.
        total: bytes of the GPU; by default the capacity.
        timeline: whether to record allocated and reserved memory after each event.

    >>> twice = [Event(Action.ALLOCATE, 0, 30 * MIB), Event(Action.FREE, 0), Event(Action.ALLOCATE, 1, 40 * MIB)]
    >>> replay(Program(twice)).reserved // MIB
    70
    >>> found = replay(Program(twice), capacity=50 * MIB)
    >>> found.reserved // MIB, found.failed_at, found.retries
    (40, None, 1)
    """
    allocator = Allocator(capacity, settings, total)
    blocks: dict[int, Block] = {}
    marks: dict[int, dict[int, int]] = {}
    line: list[tuple[int, int]] = []
    failed_at, failure = None, None
    for index, event in enumerate(program.events):
        try:
            _act(allocator, blocks, marks, event)
        except OutOfMemory as error:
            failed_at, failure = index, error
            break
        if timeline:
            line.append((allocator.allocated, allocator.reserved))
    return Replayed(
        allocator.max_allocated,
        allocator.max_reserved,
        failed_at,
        str(failure or ""),
        allocator.retries,
        np.array(line, np.int64).reshape(-1, 2),
        failure,
    )


def _act(allocator: Allocator, blocks: dict[int, Block], marks: dict[int, dict[int, int]], event: Event) -> None:
    action = event.action
    if action == Action.ALLOCATE:
        blocks[event.block] = allocator.malloc(event.nbytes, event.stream)
    elif action == Action.FREE:
        allocator.free(blocks.pop(event.block))
    elif action == Action.RECORD_STREAM:
        allocator.record_stream(blocks[event.block], event.stream)
    elif action == Action.SYNCHRONIZE:
        allocator.synchronize(event.stream)
    elif action == Action.MARK:
        marks[event.block] = allocator.progress()
    elif action == Action.WAIT:
        allocator.reach(marks[event.block])
    else:
        allocator.empty_cache()


class LeastCapacity(NamedTuple):
    """The smallest capacity on which a program runs, in bytes.

    Attributes:
        nbytes: the program ran at this and every larger capacity that was tried.
        also_ran: smaller capacities at which it ran although it failed at a larger one.
    """

    nbytes: int
    also_ran: tuple[int, ...]


def least_capacity(
    program: Program, settings: AllocatorSettings | None = None, *, tolerance: int = 16 * MIB, grid: int = 12
) -> LeastCapacity:
    """Find the smallest capacity on which a program runs, up to a tolerance.

    More capacity can make a program fail, because it changes when segments are released and where later blocks go. So
    after a bisection between the allocated memory and the memory reserved without a limit, capacities on a grid up to
    the latter are tried, and if one fails, the search continues above it.

    Args:
        program: the program to run.
        settings: settings of the allocator.
        tolerance: bytes by which the result may be too large.
        grid: how many capacities are tried above the result of the bisection.

    >>> twice = [Event(Action.ALLOCATE, 0, 30 * MIB), Event(Action.FREE, 0), Event(Action.ALLOCATE, 1, 40 * MIB)]
    >>> least_capacity(Program(twice), tolerance=MIB).nbytes // MIB
    40
    """
    free = replay(program, settings=settings)

    def runs(capacity: int) -> bool:
        return replay(program, capacity, settings).failed_at is None

    return search(free.allocated, free.reserved, runs, tolerance=tolerance, grid=grid)


def search(allocated: int, reserved: int, runs: Callable[[int], bool], *, tolerance: int, grid: int) -> LeastCapacity:
    """Find the smallest capacity of ``least_capacity`` by trying capacities.

    Args:
        allocated: the most bytes that the program allocates.
        reserved: the most bytes that it reserves without a limit, with which it runs.
        runs: whether the program runs on a capacity.
        tolerance: as in ``least_capacity``.
        grid: as in ``least_capacity``.

    >>> search(5, 20, lambda capacity: capacity in (7, 8) or capacity > 10, tolerance=1, grid=15)
    LeastCapacity(nbytes=11, also_ran=(7,))
    """
    low, high = allocated - 1, reserved
    ran: list[int] = []
    while True:
        while high - low > tolerance:
            middle = (low + high) // 2
            low, high = (low, middle) if runs(middle) else (middle, high)
        tried = sorted({int(c) for c in np.linspace(high, reserved, grid + 2)[1:-1]} - {high})
        failing = [capacity for capacity in tried if capacity - high >= tolerance and not runs(capacity)]
        if not failing:
            return LeastCapacity(high, tuple(sorted(ran)))
        ran.append(high)
        low, high = failing[-1], reserved
