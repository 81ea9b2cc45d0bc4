"""The allocator's replay with default settings, compiled, for replays in large numbers.

The rules are those of ``autoconf.memory.allocator`` without its settings; a test holds both equal on random programs and
on recorded ones. One replay of a 7B model takes a few milliseconds instead of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from autoconf.memory.allocator_sizes import MIN_BLOCK, MIN_LARGE, ROUND_LARGE, SMALL_SEGMENT, SMALL_SIZE
from autoconf.memory.replay import Action, Event
from autoconf.memory.units import Integers

LARGE_SEGMENT = 20 * 2**20
_ALLOCATE, _FREE, _RECORD, _SYNCHRONIZE, _EMPTY, _MARK, _WAIT = (int(action) for action in Action)
_UNUSED, _TAKEN, _FREED, _WAITING = 0, 1, 2, 3  # states of a block
NO_LIMIT = 2**62


class EventArrays(NamedTuple):
    """The events of a program as arrays of shape (events,)."""

    actions: Integers
    blocks: Integers
    nbytes: Integers
    streams: Integers


def as_arrays(events: Sequence[Event]) -> EventArrays:
    """Convert the events of a program."""
    table = np.array([(event.action, event.block, event.nbytes, event.stream) for event in events], np.int64)
    return EventArrays(*np.ascontiguousarray(table.T))


class Outcome(NamedTuple):
    """The result of a compiled replay: bytes, and the index of the event that ran out of memory, or -1."""

    allocated: int
    reserved: int
    failed_at: int


def replay(events: EventArrays, capacity: int | None = None) -> Outcome:
    """Run the events of a program through the allocator.

    Args:
        events: the events.
        capacity: bytes that PyTorch can reserve; ``None`` for no limit.

    >>> mib = 2**20
    >>> twice = [Event(Action.ALLOCATE, 0, 30 * mib), Event(Action.FREE, 0), Event(Action.ALLOCATE, 1, 40 * mib)]
    >>> replay(as_arrays(twice)).reserved // mib, replay(as_arrays(twice), 50 * mib).reserved // mib
    (70, 40)
    """
    return Outcome(*_replay(*events, NO_LIMIT if capacity is None else capacity))


@njit(cache=True)
def _up(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple


@njit(cache=True)
def _add(b: Any, free: Any, count: Any, slot: int) -> None:
    """Put a free block into the list of its pool."""
    pool = b.pool[slot]
    b.state[slot] = _FREED
    b.at[slot] = count[pool]
    free[pool, count[pool]] = slot
    count[pool] += 1


@njit(cache=True)
def _remove(b: Any, free: Any, count: Any, slot: int) -> None:
    pool = b.pool[slot]
    count[pool] -= 1
    last = free[pool, count[pool]]
    free[pool, b.at[slot]] = last
    b.at[last] = b.at[slot]


class _Blocks(NamedTuple):
    """Blocks of all segments as arrays of shape (slots,)."""

    size: Integers
    address: Integers
    before: Integers  # neighbors in the segment; -1 for none
    after: Integers
    pool: Integers  # twice the stream, plus 1 in the small pool
    state: Integers
    at: Integers  # place in the list of the pool
    used_on: Integers  # streams given to record_stream, as bits
    events: Integers  # events of other streams that the block waits for
    unused: Integers  # stack of slots without a block


@njit(cache=True)
def _merge(b: _Blocks, free: Any, count: Any, slot: int, neighbor: int, unused: int) -> int:
    """Merge a block with a free neighbor; the number of unused slots afterwards."""
    if neighbor < 0 or b.state[neighbor] != _FREED:
        return unused
    _remove(b, free, count, neighbor)
    if b.before[slot] == neighbor:
        b.address[slot] = b.address[neighbor]
        b.before[slot] = b.before[neighbor]
        if b.before[slot] >= 0:
            b.after[b.before[slot]] = slot
    else:
        b.after[slot] = b.after[neighbor]
        if b.after[slot] >= 0:
            b.before[b.after[slot]] = slot
    b.size[slot] += b.size[neighbor]
    b.state[neighbor] = _UNUSED
    b.unused[unused] = neighbor
    return unused + 1


@njit(cache=True)
def _return(b: _Blocks, free: Any, count: Any, slot: int, unused: int) -> int:
    """Return a block to its pool, merged with free neighbors."""
    unused = _merge(b, free, count, slot, b.before[slot], unused)
    unused = _merge(b, free, count, slot, b.after[slot], unused)
    _add(b, free, count, slot)
    return unused


@njit(cache=True)
def _best(b: _Blocks, free: Any, count: Any, pool: int, size: int) -> int:
    """The smallest free block of a pool that is large enough; -1 if there is none."""
    best = -1
    for index in range(count[pool]):
        slot = free[pool, index]
        if b.size[slot] >= size and (
            best < 0
            or b.size[slot] < b.size[best]
            or (b.size[slot] == b.size[best] and b.address[slot] < b.address[best])
        ):
            best = slot
    return best


@njit(cache=True)
def _release_all(b: _Blocks, free: Any, count: Any, unused: int) -> tuple[int, int]:
    """Release all segments that are completely free: unused slots afterwards, and released bytes."""
    released = 0
    for pool in range(len(count)):
        index = 0
        while index < count[pool]:
            slot = free[pool, index]
            if b.before[slot] < 0 and b.after[slot] < 0:
                _remove(b, free, count, slot)
                released += b.size[slot]
                b.state[slot] = _UNUSED
                b.unused[unused] = slot
                unused += 1
            else:
                index += 1
    return unused, released


@njit(cache=True)
def _replay(  # noqa: C901, PLR0912, PLR0915 - one compiled loop over events
    actions: Integers, numbers: Integers, nbytes: Integers, streams: Integers, capacity: int
) -> tuple[int, int, int]:
    total = len(actions)
    slots, ways = total + 2, 2 * (streams.max() + 1)
    b = _Blocks(
        np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.full(slots, -1, np.int64), np.full(slots, -1, np.int64),
        np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.zeros(slots, np.int64), np.zeros(slots, np.int64),
        np.zeros(slots, np.int64), np.arange(slots, dtype=np.int64)[::-1].copy(),
    )  # fmt: skip
    unused = slots
    free, count = np.zeros((ways, slots), np.int32), np.zeros(ways, np.int64)
    block_of = np.full(total + 1, -1, np.int64)
    n = ways // 2
    recorded, reached, taken = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    waiting = np.zeros((n, total + 1), np.int32)  # blocks of each stream's events, in their order
    marks = np.zeros((total + 1 if n > 1 else 1, n), np.int64)
    allocated = most_allocated = reserved = most_reserved = next_address = 0
    for at in range(total):
        action, number, stream = actions[at], numbers[at], streams[at]
        if action == _ALLOCATE or action == _EMPTY:
            for s in range(n):
                if action == _EMPTY:
                    reached[s] = recorded[s]
                while taken[s] < min(reached[s], recorded[s]):
                    slot = waiting[s, taken[s]]
                    taken[s] += 1
                    b.events[slot] -= 1
                    if b.events[slot] == 0:
                        unused = _return(b, free, count, slot, unused)
        if action == _ALLOCATE:
            size = max(_up(nbytes[at], MIN_BLOCK), MIN_BLOCK)
            small = size <= SMALL_SIZE
            pool = 2 * stream + (1 if small else 0)
            slot = _best(b, free, count, pool, size)
            if slot >= 0:
                _remove(b, free, count, slot)
            else:
                segment = (
                    SMALL_SEGMENT if small else (LARGE_SEGMENT if size < MIN_LARGE else _up(size, ROUND_LARGE))
                )
                if reserved + segment > capacity:
                    for s in range(n):
                        reached[s] = recorded[s]
                        while taken[s] < recorded[s]:
                            slot = waiting[s, taken[s]]
                            taken[s] += 1
                            b.events[slot] -= 1
                            if b.events[slot] == 0:
                                unused = _return(b, free, count, slot, unused)
                    unused, released = _release_all(b, free, count, unused)
                    reserved -= released
                    if reserved + segment > capacity:
                        return most_allocated, most_reserved, at
                reserved += segment
                most_reserved = max(most_reserved, reserved)
                unused -= 1
                slot = b.unused[unused]
                b.size[slot], b.address[slot], b.pool[slot] = segment, next_address, pool
                b.before[slot] = b.after[slot] = -1
                next_address += segment
            remaining = b.size[slot] - size
            if (small and remaining >= MIN_BLOCK) or (not small and remaining > SMALL_SIZE):
                unused -= 1
                rest = b.unused[unused]
                b.size[rest], b.address[rest], b.pool[rest] = remaining, b.address[slot] + size, pool
                b.before[rest], b.after[rest] = slot, b.after[slot]
                if b.after[slot] >= 0:
                    b.before[b.after[slot]] = rest
                b.after[slot] = rest
                b.size[slot] = size
                _add(b, free, count, rest)
            b.state[slot], b.used_on[slot], b.events[slot] = _TAKEN, 0, 0
            block_of[number] = slot
            allocated += b.size[slot]
            most_allocated = max(most_allocated, allocated)
        elif action == _FREE:
            slot = block_of[number]
            allocated -= b.size[slot]
            if b.used_on[slot] == 0:
                unused = _return(b, free, count, slot, unused)
                continue
            b.state[slot] = _WAITING
            for s in range(n):
                if b.used_on[slot] >> s & 1:
                    b.events[slot] += 1
                    waiting[s, recorded[s]] = slot
                    recorded[s] += 1
            b.used_on[slot] = 0
        elif action == _RECORD:
            slot = block_of[number]
            if 2 * stream != b.pool[slot] - b.pool[slot] % 2:
                b.used_on[slot] |= 1 << stream
        elif action == _SYNCHRONIZE:
            reached[stream] = max(reached[stream], recorded[stream])
        elif action == _MARK:
            if n > 1:
                marks[number] = recorded
        elif action == _WAIT:
            if n > 1:
                for s in range(n):
                    reached[s] = max(reached[s], marks[number, s])
        else:
            unused, released = _release_all(b, free, count, unused)
            reserved -= released
    return most_allocated, most_reserved, -1


def least_capacity(events: EventArrays, *, tolerance: int = 32 * 2**20, grid: int = 8) -> int:
    """The smallest capacity from which on a program runs, in bytes; as ``autoconf.memory.replay.least_capacity``.

    Args:
        events: the events.
        tolerance: bytes by which the result may be too large.
        grid: how many capacities are tried above the result of the bisection.
    """
    free = replay(events)

    def runs(capacity: int) -> bool:
        return replay(events, capacity).failed_at < 0

    low, high = free.allocated - 1, free.reserved
    while True:
        while high - low > tolerance:
            middle = (low + high) // 2
            low, high = (low, middle) if runs(middle) else (middle, high)
        tried = np.linspace(high, free.reserved, grid + 2)[1:-1].astype(np.int64).tolist()
        failing = [capacity for capacity in tried if capacity - high >= tolerance and not runs(capacity)]
        if not failing:
            return high
        low, high = failing[-1], free.reserved
