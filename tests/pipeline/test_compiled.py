"""The compiled replay follows the allocator's rules, also for programs with several streams."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch", reason="jobs are recorded with the extra [build], installed on Python 3.11")

from autoconf.memory import replay as interpreted
from autoconf.memory.replay import Action, Event, Program
from autoconf.pipeline.replay import compiled
from autoconf.pipeline.replay.event_arrays import as_arrays


def random_events(seed: int, streams: int, count: int = 400) -> list[Event]:
    """Events of a program that frees in any order, uses blocks on other streams, and waits for them."""
    generator = random.Random(seed)
    events: list[Event] = []
    alive: list[int] = []
    blocks = marks = 0
    for _ in range(count):
        chance, stream = generator.random(), generator.randrange(streams)
        if chance < 0.5 or not alive:
            events.append(Event(Action.ALLOCATE, blocks, int(2 ** generator.uniform(5, 27)), stream))
            alive.append(blocks)
            blocks += 1
        elif chance < 0.85:
            events.append(Event(Action.FREE, alive.pop(generator.randrange(len(alive)))))
        elif chance < 0.92:
            events.append(Event(Action.RECORD_STREAM, generator.choice(alive), stream=stream))
        elif chance < 0.94:
            events.append(Event(Action.SYNCHRONIZE, -1, stream=stream))
        elif chance < 0.96:
            marks += 1
            events.append(Event(Action.MARK, marks))
        elif chance < 0.98 and marks:
            events.append(Event(Action.WAIT, generator.randint(1, marks)))
        elif chance > 0.995:
            events.append(Event(Action.EMPTY_CACHE, -1))
    return events


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_random_programs_end_as_in_the_allocator(streams: int) -> None:
    failures = 0
    for seed in range(25):
        events = random_events(seed, streams)
        whole = interpreted.replay(Program(events))
        for share in (None, 0.0, 0.3, 0.6, 1.0):
            between = whole.reserved - whole.allocated
            capacity = None if share is None else int(whole.allocated + share * between)
            expected = interpreted.replay(Program(events), capacity)
            failed_at = -1 if expected.failed_at is None else expected.failed_at
            assert compiled.replay(as_arrays(events), capacity) == (expected.allocated, expected.reserved, failed_at)
            failures += failed_at >= 0
    assert failures > 10


def test_the_least_capacity_is_the_same() -> None:
    for seed in range(5):
        events = random_events(seed, 1, count=150)
        expected = interpreted.least_capacity(Program(events), tolerance=2**22, grid=4)
        assert compiled.least_capacity(as_arrays(events), tolerance=2**22, grid=4) == expected.nbytes
