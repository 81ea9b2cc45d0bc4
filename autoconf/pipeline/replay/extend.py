"""Extend the program of a short model to the full depth: events of a middle layer repeat for each further layer.

Events belong to a layer by time (forward and backward passes), or by the parameter of their block (optimizer and
clipping, which run over all parameters at once, and loading). A *zone* is a stretch of events in which the layers
follow each other, in either order. In each zone the events of two middle layers must be the same; they are repeated.
References to blocks are relative to the layer: a layer's backward pass frees blocks of the same layer's forward pass.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autoconf.memory.replay import Action, Event, Place, Program
from autoconf.memory.units import Integers
from autoconf.pipeline.tracing.recorder import TraceError

_NO_LAYER = -1
_LAYER = re.compile(r"layer (\d+)")
_LAYER_OF_MODULE = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)(?:\.|$)")
_OVER_PARAMETERS = ("optimizer", "clipping")
_FOREACH = "aten._foreach_"  # ops over all parameters at once; all others of an optimizer run for one at a time


class Extension(NamedTuple):
    """A longer program: for each of its events the event of the short program, and its block; shape (events,)."""

    source: Integers
    blocks: Integers


class _Chunk(NamedTuple):
    """Consecutive events of one layer in one zone, or of no layer."""

    zone: int
    layer: int
    start: int
    end: int


class _Made(NamedTuple):
    """Where a block was allocated: the chunk, and its number among the blocks of the chunk."""

    chunk: _Chunk
    number: int


def extend(program: Program, short: int, layers: int) -> Extension:
    """Extend the program of a short model. Its first and last layers stay at the ends, and a middle one is repeated.

    Args:
        program: the recorded program of the short model.
        short: layers of the short model, an even number.
        layers: layers of the full model, at least ``short``.

    Raises:
        TraceError: the program does not consist of equal layers.
    """
    events, depth = program.events, _Depth(short, layers)
    chunks = list(_chunks(events, _layers(program, short)))
    made = _made(events, chunks)
    zones: dict[int, dict[int, _Chunk]] = {}
    for chunk in chunks:
        zones.setdefault(chunk.zone, {})[chunk.layer] = chunk
    for chunk in chunks:
        if chunk.layer == depth.middle:
            _check_alike(events, made, chunk, zones[chunk.zone].get(depth.middle + 1))
    return _written(events, made, zones, depth)


# --- which layer an event belongs to ----------------------------------------------------------------------------------


def _layers(program: Program, short: int) -> Integers:
    """The layer of each event, or -1; shape (events,)."""
    events, places = program.events, program.places
    known = [_layer_of(place) for place in places]
    over_parameters = [place.part in _OVER_PARAMETERS or place.when == "loading" for place in places]
    layers = np.full(len(events), _NO_LAYER)
    layer_of_block: dict[int, int] = {}
    temporary: set[int] = set()  # blocks that an optimizer made for one parameter, and frees while it goes on
    owners = _owners(program, over_parameters, short)
    current, by_owner = _NO_LAYER, False
    for index, event in enumerate(events):
        if event.action == Action.ALLOCATE:
            by_owner = over_parameters[event.place]
            current = owners.get(index, known[event.place])
            layers[index] = layer_of_block[event.block] = current
            if _in_turn(places[event.place]):
                temporary.add(event.block)
        elif event.action == Action.FREE and (by_owner or current == _NO_LAYER) and event.block not in temporary:
            layers[index] = layer_of_block[event.block]
        elif by_owner and event.block not in temporary:
            layers[index] = _NO_LAYER
        else:
            layers[index] = current
    return layers


def _layer_of(place: Place) -> int:
    """The layer that runs, or that is loaded; -1 for none."""
    found = _LAYER_OF_MODULE.search(place.module) if place.when == "loading" else _LAYER.match(place.part)
    return int(found.group(1)) if found else _NO_LAYER


def _owners(program: Program, over_parameters: Sequence[bool], short: int) -> dict[int, int]:
    """The layers of allocations that are made for each parameter in turn, by event."""
    kinds: dict[tuple[str, int], int] = {}  # numbers of ops with sizes
    found = {}
    for run in _runs(program, over_parameters, short):
        of_run = [kinds.setdefault(_kind(program, index), len(kinds)) for index in run]
        # Of blocks of one size, such as a norm of each gradient, only the number matters.
        periods = _periods(of_run, short) if len(set(of_run)) > 1 else [(0, len(run) // short)]
        for first, length in periods:
            for position in range(first, first + short * length):
                found[run[position]] = (position - first) // length
    return found


def _kind(program: Program, index: int) -> tuple[str, int]:
    event = program.events[index]
    return program.places[event.place].op, event.nbytes


def _runs(program: Program, over_parameters: Sequence[bool], short: int) -> Iterator[list[int]]:
    """Consecutive allocations of the same op over parameters, each as indices of events."""
    run: list[int] = []
    place = None
    for index, event in enumerate(program.events):
        if event.action != Action.ALLOCATE:
            continue
        place_here = program.places[event.place]
        here = _pass(place_here) if over_parameters[event.place] and _layer_of(place_here) == _NO_LAYER else None
        if here != place or here is None:
            if len(run) >= short:
                yield run
            run, place = [], here
        if here is not None:
            run.append(index)
    if len(run) >= short:
        yield run


def _pass(place: Place) -> tuple[str, str, str]:
    """The pass over all parameters to which an allocation belongs."""
    op = "" if place.when == "loading" or _in_turn(place) else place.op
    return place.when, place.part, op


def _in_turn(place: Place) -> bool:
    """Whether an optimizer runs an op for one parameter after the other."""
    return place.part == "optimizer" and not place.op.startswith(_FOREACH)


def _periods(kinds: Sequence[int], short: int) -> list[tuple[int, int]]:
    """First element and length of each period that repeats ``short`` times; none if all elements are equal.

    >>> _periods([9, *[1, 2, 2] * 6, 7, *[3, 4] * 6], 6)
    [(1, 3), (20, 2)]
    """
    values = np.array(kinds)
    if len(kinds) < short or (values == values[0]).all():
        return []
    for length in range(len(kinds) // short, 0, -1):
        differs = np.flatnonzero(values[:-length] != values[length:])
        ends = np.append(differs, len(values) - length)
        lengths = np.diff(ends, prepend=-1) - 1  # of stretches in which each element equals the one a period later
        long = np.flatnonzero(lengths >= length * (short - 1))
        if len(long):
            first = int(ends[long[0]] - lengths[long[0]])
            after = first + short * length
            rest = [(start + after, period) for start, period in _periods(kinds[after:], short)]
            return [*_periods(kinds[:first], short), (first, length), *rest]
    return []


# --- chunks and zones -------------------------------------------------------------------------------------------------


def _chunks(events: Sequence[Event], layers: Integers) -> Iterator[_Chunk]:
    """Split events into chunks of one layer; a zone is a sequence of chunks whose layers go up or down by one."""
    starts = [0, *(np.flatnonzero(np.diff(layers)) + 1).tolist(), len(events)]
    zone, before, step = 0, _NO_LAYER, 0
    for start, end in itertools.pairwise(starts):
        layer = int(layers[start])
        going = layer - before
        follows = layer != _NO_LAYER and before != _NO_LAYER and abs(going) == 1 and step in (0, going)
        step = going if follows else 0
        zone += not follows
        before = layer
        yield _Chunk(zone, layer, start, end)


def _made(events: Sequence[Event], chunks: Sequence[_Chunk]) -> dict[tuple[bool, int], _Made]:
    """Where each block, or mark, was made."""
    made = {}
    for chunk in chunks:
        count = 0
        for event in events[chunk.start : chunk.end]:
            if event.action in (Action.ALLOCATE, Action.MARK):
                made[_key(event)] = _Made(chunk, count)
                count += 1
    return made


def _key(event: Event) -> tuple[bool, int]:
    return event.action in (Action.MARK, Action.WAIT), event.block


def _check_alike(
    events: Sequence[Event], made: dict[tuple[bool, int], _Made], one: _Chunk, other: _Chunk | None
) -> None:
    """Check that the events of two neighboring layers are the same, with references relative to the layer."""

    def relative(chunk: _Chunk) -> list[tuple[object, ...]]:
        return [(*event[:1], *event[2:4], *_reference(made, event, chunk)) for event in events[chunk.start : chunk.end]]

    if other is None or relative(one) != relative(other):
        raise TraceError("the layers of the model do not allocate in the same way")


def _reference(made: dict[tuple[bool, int], _Made], event: Event, chunk: _Chunk) -> tuple[int, ...]:
    if event.block < 0:
        return ()
    where = made[_key(event)]
    if where.chunk.layer == _NO_LAYER:
        return (where.chunk.zone, _NO_LAYER, where.number)
    return (where.chunk.zone, where.chunk.layer - chunk.layer, where.number)


# --- the longer program -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numbers:
    """Numbers of the blocks of the longer program, in order of appearance."""

    known: dict[tuple[int, int, int, bool], int]

    def of(self, zone: int, layer: int, index: int, mark: bool) -> int:
        return self.known.setdefault((zone, layer, index, mark), len(self.known))


@dataclass(frozen=True)
class _Depth:
    """Layers of the short and of the full model.

    >>> depth = _Depth(6, 10)
    >>> [depth.template(layer) for layer in range(10)]
    [0, 1, 2, 2, 2, 2, 2, 3, 4, 5]
    """

    short: int
    layers: int

    @property
    def middle(self) -> int:
        """The layer of the short model that is repeated."""
        return self.short // 2 - 1

    def template(self, layer: int) -> int:
        """The layer of the short model that a layer of the full model repeats."""
        from_end = self.layers - 1 - layer
        half = self.short // 2
        return layer if layer < half else self.short - 1 - from_end if from_end < half else self.middle

    def full(self, layer: int) -> int:
        """The layer of the full model for one of the short model, counted from the nearer end."""
        return layer if layer < self.short // 2 else self.layers - self.short + layer


def _written(
    events: Sequence[Event], made: dict[tuple[bool, int], _Made], zones: dict[int, dict[int, _Chunk]], depth: _Depth
) -> Extension:
    numbers = _Numbers({})
    source: list[int] = []
    blocks: list[int] = []
    for zone in zones.values():
        for chunk, layer in _all_layers(zone, depth):
            for index in range(chunk.start, chunk.end):
                event = events[index]
                source.append(index)
                if event.block < 0:
                    blocks.append(event.block)
                    continue
                where = made[_key(event)]
                if where.chunk.layer == _NO_LAYER:
                    target = _NO_LAYER
                elif layer == _NO_LAYER:
                    target = depth.full(where.chunk.layer)
                else:
                    target = layer + where.chunk.layer - chunk.layer
                blocks.append(numbers.of(where.chunk.zone, target, where.number, _key(event)[0]))
    extension = Extension(np.array(source), np.array(blocks))
    _check_once(events, extension)
    return extension


def _all_layers(zone: dict[int, _Chunk], depth: _Depth) -> Iterator[tuple[_Chunk, int]]:
    """The chunks of a zone of the longer program, each with its layer."""
    order = list(zone)
    if order == [_NO_LAYER]:
        yield zone[_NO_LAYER], _NO_LAYER
        return
    if len(order) < depth.short - 2:
        if not {depth.middle, depth.middle + 1}.isdisjoint(order):
            raise TraceError("a part of the program visits only some of the layers")
        yield from ((zone[layer], depth.full(layer)) for layer in order)
        return
    first, last = (depth.full(layer) for layer in (order[0], order[-1]))
    step = 1 if last > first else -1
    for layer in range(first, last + step, step):
        yield zone[depth.template(layer)], layer


def _check_once(events: Sequence[Event], extension: Extension) -> None:
    """Check that every block is allocated once and freed at most once, in this order."""
    alive: set[int] = set()
    gone: set[int] = set()
    for index, block in zip(extension.source.tolist(), extension.blocks.tolist(), strict=True):
        action = events[index].action
        if action == Action.ALLOCATE:
            if block in alive or block in gone:
                raise TraceError("a block is allocated twice")
            alive.add(block)
        elif action == Action.FREE:
            if block not in alive:
                raise TraceError("a block is freed before it is allocated")
            alive.remove(block)
            gone.add(block)
