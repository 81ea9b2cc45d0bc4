"""Programs of allocations: what they reserve, and the least capacity that they run on."""

from __future__ import annotations

import random

import pytest

from autoconf.memory.allocator_settings import MIB, AllocatorSettings
from autoconf.memory.replay import Action, Event, Place, Program, least_capacity, replay

ALLOCATE, FREE = Action.ALLOCATE, Action.FREE


def program(*steps: int | float) -> Program:
    """A program of one stream: a positive number allocates as many MiB, -n frees the n-th allocation."""
    events, made = [], 0
    for step in steps:
        if step > 0:
            events.append(Event(ALLOCATE, made, int(step * MIB)))
            made += 1
        else:
            events.append(Event(FREE, int(-step) - 1))
    return Program(events)


def test_the_timeline_has_allocated_and_reserved_after_each_event() -> None:
    found = replay(program(30, 12, -1, 20), timeline=True)
    # 20 go into the segment of 30 that is free.
    assert (found.timeline // MIB).tolist() == [[30, 30], [42, 42], [12, 42], [32, 42]]
    assert (found.allocated // MIB, found.reserved // MIB) == (42, 42)


def test_a_failure_names_the_event_and_its_place() -> None:
    there = Place("step 1", "head backward", "lm_head", "aten.mm.default")
    events = [Event(ALLOCATE, 0, 30 * MIB), Event(ALLOCATE, 1, 40 * MIB, place=1)]
    failing = Program(events, (Place("", "", "", ""), there))
    found = replay(failing, capacity=60 * MIB, total=64 * MIB)
    assert found.failed_at == 1 and failing.place(1) == there
    assert found.failure is not None and found.failure.tried == 40 * MIB
    assert "Tried to allocate 40.00 MiB. GPU 0 has a total capacity of 64.00 MiB of which 30.00 MiB" in found.error
    assert "30.00 MiB is allocated by PyTorch, and 0 bytes is reserved" in found.error


def test_streams_and_what_waits_for_them_are_replayed() -> None:
    events = [
        Event(ALLOCATE, 0, 30 * MIB),
        Event(Action.RECORD_STREAM, 0, stream=1),
        Event(FREE, 0),
        Event(ALLOCATE, 1, 30 * MIB),
        Event(Action.SYNCHRONIZE, -1, stream=1),
        Event(ALLOCATE, 2, 30 * MIB),
        Event(FREE, 2),
        Event(Action.EMPTY_CACHE, -1),
    ]
    found = replay(Program(events), timeline=True)
    assert (found.timeline[:, 1] // MIB).tolist() == [30, 30, 30, 60, 60, 60, 60, 30]


def test_waiting_for_a_mark_lets_go_of_what_was_freed_before_it() -> None:
    used = [Event(ALLOCATE, 0, 30 * MIB), Event(Action.RECORD_STREAM, 0, stream=1), Event(FREE, 0)]
    marked = Event(Action.MARK, 7)
    wait_and_allocate = [Event(Action.WAIT, 7), Event(ALLOCATE, 1, 30 * MIB)]
    assert replay(Program([*used, marked, *wait_and_allocate])).reserved == 30 * MIB
    assert replay(Program([marked, *used, *wait_and_allocate])).reserved == 60 * MIB


def test_the_least_capacity_is_what_is_held_where_segments_can_be_given_back() -> None:
    found = least_capacity(program(30, -1, 40, -2, 50), tolerance=MIB)
    assert 50 * MIB <= found.nbytes < 51 * MIB and found.also_ran == ()


def test_the_least_capacity_counts_segments_that_a_small_block_holds() -> None:
    """100 MiB are freed but for 2 at the start, so that 60 more find no room in their segment."""
    holes = program(100, -1, 2, 60, 60)
    # 100 with the 2 and the first 60 in it, and 60 more.
    assert 160 * MIB <= least_capacity(holes, tolerance=MIB).nbytes < 161 * MIB
    # Expandable segments give back the pages between, and allocate 122 in seven pages of 20.
    expandable = least_capacity(holes, AllocatorSettings(expandable_segments=True), tolerance=MIB)
    assert 139 * MIB < expandable.nbytes < 141 * MIB


def test_where_more_capacity_fails_the_least_one_is_above_that() -> None:
    """With less room a segment is given back before a small block settles in it.

    At 70 and 80 MiB the free 40 has to go for the 50; 10 gets a segment of its own, and with the 50 given back 60 has
    room: 70. From 90 on 40 and 50 have room together, 10 goes into the free 40, and 40 + 60 need 100.
    """
    touchy = program(40, -1, 50, 10, -2, 60)
    ran = [replay(touchy, capacity * MIB).failed_at is None for capacity in (60, 70, 80, 90, 99, 100, 110)]
    assert ran == [False, True, True, False, False, True, True]
    found = least_capacity(touchy, tolerance=MIB, grid=16)
    assert 100 * MIB <= found.nbytes < 101 * MIB
    assert [capacity // MIB for capacity in found.also_ran] == [70]


@pytest.mark.parametrize("seed", range(20))
def test_a_program_runs_from_its_least_capacity_on(seed: int) -> None:
    chance = random.Random(seed)
    events, live = [], []
    for block in range(200):
        events.append(Event(ALLOCATE, block, int(2 ** chance.uniform(10, 27)), chance.randrange(2)))
        live.append(block)
        while len(live) > 12:
            events.append(Event(FREE, live.pop(chance.randrange(len(live)))))
    ran = Program(events)
    found, free = least_capacity(ran, tolerance=2 * MIB, grid=20), replay(ran)
    assert free.allocated <= found.nbytes <= free.reserved
    assert replay(ran, found.nbytes).failed_at is None
    assert replay(ran, free.reserved).failed_at is None
