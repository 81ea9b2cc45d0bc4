"""The allocator's replay with default settings, compiled, for replays in large numbers.

The rules are those of ``autoconf.memory.allocator`` without its settings; a test holds both equal on random programs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from autoconf.memory.allocator_sizes import LARGE_SEGMENT, MIN_BLOCK, MIN_LARGE, ROUND_LARGE, SMALL_SEGMENT, SMALL_SIZE
from autoconf.memory.replay import Action, search
from autoconf.memory.units import Integers
from autoconf.pipeline.replay.event_arrays import EventArrays

_ALLOCATE, _FREE, _RECORD, _SYNCHRONIZE, _EMPTY, _MARK, _WAIT = (int(action) for action in Action)
_UNUSED, _TAKEN, _FREED, _WAITING = 0, 1, 2, 3  # states of a block
_NO_LIMIT = 2**62
# Columns of ``_State.block``: bytes; address; neighbors in the segment, or -1; twice the stream, plus 1 in the small
# pool; a state; streams given to record_stream, as bits; events of other streams that the block waits for.
_SIZE, _START, _BEFORE, _AFTER, _POOL, _STATE, _USED_ON, _EVENTS, _COLUMNS = range(9)
# Places in ``_State.totals``.
_SLOTS, _ALLOCATED, _MOST_ALLOCATED, _RESERVED, _MOST_RESERVED, _ADDRESS = range(6)


class Outcome(NamedTuple):
    """The result of a compiled replay: most bytes, and the index of the event that ran out of memory, or -1."""

    allocated: int
    reserved: int
    failed_at: int


def replay(events: EventArrays, capacity: int | None = None) -> Outcome:
    """Run the events of a program through the allocator.

    Args:
        events: the events.
        capacity: bytes that PyTorch can reserve; ``None`` for no limit.

    >>> from autoconf.memory.replay import Event
    >>> from autoconf.pipeline.replay.event_arrays import as_arrays
    >>> mib = 2**20
    >>> twice = [Event(Action.ALLOCATE, 0, 30 * mib), Event(Action.FREE, 0), Event(Action.ALLOCATE, 1, 40 * mib)]
    >>> replay(as_arrays(twice)).reserved // mib, replay(as_arrays(twice), 50 * mib).reserved // mib
    (70, 40)
    """
    return Outcome(*_run(*events, _NO_LIMIT if capacity is None else capacity))


def least_capacity(events: EventArrays, *, tolerance: int = 32 * 2**20, grid: int = 8) -> int:
    """The smallest capacity from which on a program runs, in bytes; as ``autoconf.memory.replay.least_capacity``.

    Args:
        events: the events.
        tolerance: bytes by which the result may be too large.
        grid: how many capacities are tried above the result of the bisection.

    >>> from autoconf.memory.replay import Event
    >>> from autoconf.pipeline.replay.event_arrays import as_arrays
    >>> mib = 2**20
    >>> twice = [Event(Action.ALLOCATE, 0, 30 * mib), Event(Action.FREE, 0), Event(Action.ALLOCATE, 1, 40 * mib)]
    >>> least_capacity(as_arrays(twice), tolerance=mib) // mib
    40
    """
    free = replay(events)

    def runs(capacity: int) -> bool:
        return replay(events, capacity).failed_at < 0

    return search(free.allocated, free.reserved, runs, tolerance=tolerance, grid=grid).nbytes


# --- compiled ---------------------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """The allocator. Each block has a slot."""

    block: Integers  # shape (slots, columns)
    unused: Integers  # shape (slots,): stack of slots without a block
    free: Integers  # shape (pools, slots): free blocks of each pool, in order of size and address
    filled: Integers  # shape (pools,): how many
    recorded: Integers  # shape (streams,): events of each stream so far
    reached: Integers  # how many of them have completed
    taken: Integers  # how many of these have been processed
    waiting: Integers  # shape (streams, events): the blocks of these events
    totals: Integers


@njit(cache=True)
def _empty(slots: int, streams: int) -> _State:
    return _State(
        np.zeros((slots, _COLUMNS), np.int64), np.arange(slots), np.zeros((2 * streams, slots), np.int64),
        np.zeros(2 * streams, np.int64), np.zeros(streams, np.int64), np.zeros(streams, np.int64),
        np.zeros(streams, np.int64), np.zeros((streams, slots), np.int64), np.array([slots, 0, 0, 0, 0, 0]),
    )  # fmt: skip


@njit(cache=True, inline="always")
def _up(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple


@njit(cache=True, inline="always")
def _new_slot(s: _State, pool: int, size: int, address: int) -> int:
    s.totals[_SLOTS] -= 1
    slot = s.unused[s.totals[_SLOTS]]
    s.block[slot, _SIZE], s.block[slot, _START], s.block[slot, _POOL] = size, address, pool
    s.block[slot, _BEFORE], s.block[slot, _AFTER] = -1, -1
    return slot


@njit(cache=True, inline="always")
def _give_up_slot(s: _State, slot: int) -> None:
    s.block[slot, _STATE] = _UNUSED
    s.unused[s.totals[_SLOTS]] = slot
    s.totals[_SLOTS] += 1


@njit(cache=True, inline="always")
def _place(s: _State, pool: int, size: int, address: int) -> int:
    """The place in the list of a pool of the first block that is not below a size and an address."""
    low, high = 0, s.filled[pool]
    while low < high:
        middle = (low + high) // 2
        slot = s.free[pool, middle]
        if s.block[slot, _SIZE] < size or (s.block[slot, _SIZE] == size and s.block[slot, _START] < address):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, inline="always")
def _add(s: _State, slot: int) -> None:
    """Put a free block into the list of its pool."""
    pool = s.block[slot, _POOL]
    place = _place(s, pool, s.block[slot, _SIZE], s.block[slot, _START])
    for index in range(s.filled[pool], place, -1):
        s.free[pool, index] = s.free[pool, index - 1]
    s.free[pool, place] = slot
    s.filled[pool] += 1
    s.block[slot, _STATE] = _FREED


@njit(cache=True, inline="always")
def _remove(s: _State, slot: int) -> None:
    pool = s.block[slot, _POOL]
    s.filled[pool] -= 1
    for index in range(_place(s, pool, s.block[slot, _SIZE], s.block[slot, _START]), s.filled[pool]):
        s.free[pool, index] = s.free[pool, index + 1]


@njit(cache=True, inline="always")
def _merge(s: _State, slot: int, neighbor: int) -> None:
    """Merge a block with a free neighbor."""
    if neighbor < 0 or s.block[neighbor, _STATE] != _FREED:
        return
    _remove(s, neighbor)
    if s.block[slot, _BEFORE] == neighbor:
        s.block[slot, _START], s.block[slot, _BEFORE] = s.block[neighbor, _START], s.block[neighbor, _BEFORE]
        if s.block[slot, _BEFORE] >= 0:
            s.block[s.block[slot, _BEFORE], _AFTER] = slot
    else:
        s.block[slot, _AFTER] = s.block[neighbor, _AFTER]
        if s.block[slot, _AFTER] >= 0:
            s.block[s.block[slot, _AFTER], _BEFORE] = slot
    s.block[slot, _SIZE] += s.block[neighbor, _SIZE]
    _give_up_slot(s, neighbor)


@njit(cache=True)
def _return(s: _State, slot: int) -> None:
    """Return a block to its pool, merged with free neighbors."""
    _merge(s, slot, s.block[slot, _BEFORE])
    _merge(s, slot, s.block[slot, _AFTER])
    _add(s, slot)


@njit(cache=True)
def _process_events(s: _State, wait: bool) -> None:
    """Return blocks whose events have completed; with ``wait`` those of all events."""
    for stream in range(len(s.recorded)):
        if wait:
            s.reached[stream] = s.recorded[stream]
        while s.taken[stream] < s.reached[stream]:
            slot = s.waiting[stream, s.taken[stream]]
            s.taken[stream] += 1
            s.block[slot, _EVENTS] -= 1
            if s.block[slot, _EVENTS] == 0:
                _return(s, slot)


@njit(cache=True, inline="always")
def _best(s: _State, pool: int, size: int) -> int:
    """The smallest free block of a pool that is large enough; -1 if there is none."""
    place = _place(s, pool, size, -1)
    return s.free[pool, place] if place < s.filled[pool] else -1


@njit(cache=True)
def _empty_cache(s: _State) -> None:
    """Wait for all streams, and release all segments that are completely free."""
    _process_events(s, True)
    for pool in range(len(s.filled)):
        index = 0
        while index < s.filled[pool]:
            slot = s.free[pool, index]
            if s.block[slot, _BEFORE] < 0 and s.block[slot, _AFTER] < 0:
                _remove(s, slot)
                s.totals[_RESERVED] -= s.block[slot, _SIZE]
                _give_up_slot(s, slot)
            else:
                index += 1


@njit(cache=True)
def _new_segment(s: _State, pool: int, size: int, capacity: int) -> int:
    """A block of a new segment; -1 if there is not enough memory."""
    segment = SMALL_SEGMENT if pool % 2 else LARGE_SEGMENT if size < MIN_LARGE else _up(size, ROUND_LARGE)
    if s.totals[_RESERVED] + segment > capacity:
        _empty_cache(s)
        if s.totals[_RESERVED] + segment > capacity:
            return -1
    s.totals[_RESERVED] += segment
    s.totals[_MOST_RESERVED] = max(s.totals[_MOST_RESERVED], s.totals[_RESERVED])
    slot = _new_slot(s, pool, segment, s.totals[_ADDRESS])
    s.totals[_ADDRESS] += segment
    return slot


@njit(cache=True, inline="always")
def _split(s: _State, slot: int, size: int) -> None:
    """Split off the unneeded rest of a block."""
    remaining = s.block[slot, _SIZE] - size
    if remaining < MIN_BLOCK if s.block[slot, _POOL] % 2 else remaining <= SMALL_SIZE:
        return
    rest = _new_slot(s, s.block[slot, _POOL], remaining, s.block[slot, _START] + size)
    s.block[rest, _BEFORE], s.block[rest, _AFTER] = slot, s.block[slot, _AFTER]
    if s.block[slot, _AFTER] >= 0:
        s.block[s.block[slot, _AFTER], _BEFORE] = rest
    s.block[slot, _AFTER], s.block[slot, _SIZE] = rest, size
    _add(s, rest)


@njit(cache=True)
def _malloc(s: _State, nbytes: int, stream: int, capacity: int) -> int:
    """Allocate; -1 if there is not enough memory."""
    _process_events(s, False)
    size = max(_up(nbytes, MIN_BLOCK), MIN_BLOCK)
    pool = 2 * stream + (1 if size <= SMALL_SIZE else 0)
    slot = _best(s, pool, size)
    if slot >= 0:
        _remove(s, slot)
    else:
        slot = _new_segment(s, pool, size, capacity)
        if slot < 0:
            return -1
    _split(s, slot, size)
    s.block[slot, _STATE], s.block[slot, _USED_ON], s.block[slot, _EVENTS] = _TAKEN, 0, 0
    s.totals[_ALLOCATED] += s.block[slot, _SIZE]
    s.totals[_MOST_ALLOCATED] = max(s.totals[_MOST_ALLOCATED], s.totals[_ALLOCATED])
    return slot


@njit(cache=True)
def _release(s: _State, slot: int) -> None:
    """Free a block; if other streams used it, only after they have caught up."""
    s.totals[_ALLOCATED] -= s.block[slot, _SIZE]
    if s.block[slot, _USED_ON] == 0:
        _return(s, slot)
        return
    s.block[slot, _STATE] = _WAITING
    for stream in range(len(s.recorded)):
        if s.block[slot, _USED_ON] >> stream & 1:
            s.block[slot, _EVENTS] += 1
            s.waiting[stream, s.recorded[stream]] = slot
            s.recorded[stream] += 1
    s.block[slot, _USED_ON] = 0


@njit(cache=True)
def _run(
    actions: Integers, numbers: Integers, nbytes: Integers, streams: Integers, capacity: int
) -> tuple[int, int, int]:
    count = streams.max() + 1
    s = _empty(len(actions) + 2, count)
    block_of = np.zeros(len(actions) + 1, np.int64)
    marks = np.zeros((len(actions) + 1 if count > 1 else 1, count), np.int64)
    for at in range(len(actions)):
        action, number, stream = actions[at], numbers[at], streams[at]
        if action == _ALLOCATE:
            block_of[number] = _malloc(s, nbytes[at], stream, capacity)
            if block_of[number] < 0:
                return s.totals[_MOST_ALLOCATED], s.totals[_MOST_RESERVED], at
        elif action == _FREE:
            _release(s, block_of[number])
        elif action == _EMPTY:
            _empty_cache(s)
        elif count == 1:
            continue  # nothing waits for another stream
        elif action == _RECORD:
            if stream != s.block[block_of[number], _POOL] // 2:
                s.block[block_of[number], _USED_ON] |= 1 << stream
        elif action == _SYNCHRONIZE:
            s.reached[stream] = max(s.reached[stream], s.recorded[stream])
        elif action == _MARK:
            marks[number] = s.recorded
        elif action == _WAIT:
            for each in range(count):
                s.reached[each] = max(s.reached[each], marks[number, each])
    return s.totals[_MOST_ALLOCATED], s.totals[_MOST_RESERVED], -1
