"""Extrapolate the trace of a short stack of layers to the memory of a whole model at each point of a micro-batch.

The memory excludes parameters and is independent of sharding. It is computed from the storages of the short stack
(``autoconf.pipeline.tracing.ledger``).

Decoder layers of one kind hold the same memory. So a moment of a layer at any depth is the same moment of the short
stack's layer of its kind, plus the tensors that the layers before it saved for their backward pass. Gradients are
counted separately, because the number of unsharded gradients depends on the sharding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from autoconf.memory.envelope import undominated
from autoconf.memory.profile import Point, StackMoment
from autoconf.pipeline.tracing.ledger import Storages
from autoconf.pipeline.tracing.recorder import EMBEDDING, HEAD, LOSS, TAIL, Part, TraceError

_NOTHING = np.zeros(4)  # bytes, with the columns of ``ledger.Size``, as all sizes in this module


def layer_moments(storages: Storages, short: Sequence[str], kinds: Sequence[str]) -> list[StackMoment]:
    """Moments of the whole model except those of its head, without dominated ones.

    Args:
        storages: storages of a short stack.
        short: kinds of its layers; the first and the last one are those of the whole model, and each kind is among the
            others.
        kinds: kinds of the whole model's layers.

    Raises:
        TraceError: a layer of the short stack frees memory that an earlier layer saved.
    """
    return envelope(list(_WholeModel(_ShortStack(storages, short), kinds).moments()))


def head_moments(storages: Storages, short: Sequence[str], rank: int) -> list[StackMoment]:
    """Moments of head and loss, without the tensors that the layers keep; arguments as in ``layer_moments``.

    Head and loss have no adapters, so sizes that are multiples of the rank are so by chance.
    """
    return envelope([_at_rank(moment, rank) for moment in _head_moments(_ShortStack(storages, short))])


def _at_rank(moment: StackMoment, rank: int) -> StackMoment:
    return moment._replace(
        constant=moment.constant + rank * moment.constant_per_rank,
        per_token=moment.per_token + rank * moment.per_token_per_rank,
        constant_per_rank=0.0,
        per_token_per_rank=0.0,
    )


def _moment(
    point: Point,
    activations: np.ndarray,
    *,
    layer: np.ndarray = _NOTHING,
    newest: np.ndarray = _NOTHING,
    finished: np.ndarray = _NOTHING,
    root: np.ndarray = _NOTHING,
) -> StackMoment:
    """A moment with its activations and gradients, each of shape (4,)."""
    gradients = [float(size[0] + size[2]) for size in (layer, newest, finished, root)]  # none depends on the tokens
    return StackMoment(point, *map(float, activations), *gradients)


class _ShortStack:
    """The storages of a short stack, by the moments at which they are alive and by the layers that created them."""

    def __init__(self, storages: Storages, layers: Sequence[str]) -> None:
        self.layers = layers
        self._storages = storages
        moments = np.arange(len(storages.born))
        self._alive = (storages.born <= moments[:, None]) & (storages.dead > moments[:, None])  # moments x storages
        self._is_gradient = storages.gradient_of > -2
        # The layer in whose forward pass each storage was created; -1 for any other.
        self._layer_of = np.array([p.layer if p.segment == "layer" and not p.backward else -1 for p in storages.parts])
        # Autocast keeps its copies of weights until the end of the forward pass; saved tensors stay longer.
        self._saved_by = {
            backward: self._alive_from_forward(self.first(LOSS if backward else HEAD)) for backward in (False, True)
        }

    def _alive_from_forward(self, moment: int) -> np.ndarray:
        """The layer in whose forward pass each storage that is alive at a moment was created; -1 for any other."""
        return np.where(self._alive[moment] & ~self._is_gradient, self._layer_of, -1)

    def saved(self, backward: bool) -> np.ndarray:
        """Bytes that each layer keeps for its backward pass, while the head runs or (``backward``) after it."""
        saved_by = self._saved_by[backward]
        return np.array([self._storages.sizes[saved_by == layer].sum(axis=0) for layer in range(len(self.layers))])

    def moments(self, part: Part) -> list[int]:
        """The moments of a part, in order."""
        return [moment for moment, other in enumerate(self._storages.parts) if other == part]

    def first(self, part: Part) -> int:
        """The first moment of a part."""
        return self._storages.parts.index(part)

    def forward_is_over(self, moment: int) -> bool:
        """Whether the model's forward pass is over and its temporary tensors are released."""
        part = self._storages.parts[moment]
        if part != HEAD:
            return part.backward
        saved_by = self._saved_by[False]
        return not self._alive[moment][(saved_by >= 0) & (saved_by < len(self.layers) - 1)].all()

    def activations(self, moment: int) -> np.ndarray:
        """Bytes alive at a moment, without gradients and without the tensors that untouched earlier layers saved.

        Raises:
            TraceError: a tensor that one of these layers saved was released.
        """
        part = self._storages.parts[moment]
        saved_by = self._saved_by[self.forward_is_over(moment)]
        untouched = (saved_by >= 0) & (saved_by < self._untouched_layers(part))
        if not self._alive[moment][untouched & (self._storages.born < moment)].all():
            raise TraceError(f"{part} frees a tensor that an earlier layer saved")
        return self._bytes(moment, ~untouched & ~self._is_gradient)

    def _untouched_layers(self, part: Part) -> int:
        """How many of the first layers a part does not touch; it may release tensors of the layer right before it."""
        if part in (HEAD, LOSS):
            return len(self.layers) - 1
        return max(part.layer - 1, 0)

    def activations_at_start(self, part: Part) -> np.ndarray:
        """``activations`` at the start of a part, before its first storage."""
        first = self.first(part)
        return self.activations(first) - (_NOTHING if self._is_gradient[first] else self._storages.sizes[first])

    def outside_layers(self, moment: int) -> np.ndarray:
        """Bytes alive at a moment, without gradients and without storages of the layers' forward pass."""
        return self._bytes(moment, (self._layer_of < 0) & ~self._is_gradient)

    def outside_layers_at_start(self, part: Part) -> np.ndarray:
        """``outside_layers`` at the start of a part, before its first storage."""
        first = self.first(part)
        return self.outside_layers(first) - self._storages.sizes[first]

    def gradients(self, moment: int, layer: int) -> np.ndarray:
        """Gradients that exist at a moment of a layer's parameters; -1 for those outside of the layers."""
        return self._bytes(moment, self._storages.gradient_of == layer)

    def all_gradients(self, layer: int) -> np.ndarray:
        """Gradients of all of a layer's parameters; -1 for those outside of the layers."""
        return self._storages.sizes[self._storages.gradient_of == layer].sum(axis=0)

    def newest_gradient(self, moment: int) -> np.ndarray:
        """The gradient that is created at a moment, if any."""
        return self._storages.sizes[moment] if self._is_gradient[moment] else _NOTHING

    def _bytes(self, moment: int, counted: np.ndarray) -> np.ndarray:
        return self._storages.sizes[self._alive[moment] & counted].sum(axis=0)


class _BackwardPoints(NamedTuple):
    """Points of a layer's backward pass, by the position of the layer."""

    start: Point
    middle: Point
    end: Point


_OF_FIRST = _BackwardPoints(Point.FIRST_START, Point.FIRST, Point.FIRST_END)
_OF_LAST = _BackwardPoints(Point.LAST_START, Point.LAST, Point.END)
_OF_OTHERS = _BackwardPoints(Point.START, Point.MIDDLE, Point.END)


class _WholeModel:
    """All layers of a model, each with the layer of the short stack that represents it.

    ``position`` counts the layers of the whole model, ``layer`` those of the short stack.
    """

    def __init__(self, short: _ShortStack, kinds: Sequence[str]) -> None:
        self.short, self.kinds, self.depth = short, kinds, len(kinds)
        self.layer_at = _layer_at(short.layers, kinds)
        self.saved = {backward: short.saved(backward) for backward in (False, True)}
        self.saved_before = {backward: self._saved_before(backward) for backward in (False, True)}
        # Gradients of the layer at each position, and of all layers after it; both have shape (positions, 4).
        self.gradients = np.array([short.all_gradients(layer) for layer in self.layer_at])
        self.gradients_behind = np.concatenate([np.cumsum(self.gradients[::-1], axis=0)[::-1][1:], [_NOTHING]])

    def _saved_before(self, backward: bool) -> np.ndarray:
        """Bytes that the layers before each position saved; shape (positions + 1, 4), the last one for the head.

        The tensors saved by the layer right before that of the short stack are excluded: its activations include them.
        """
        saved = self.saved[backward]
        all_before = np.concatenate([[_NOTHING], np.cumsum(saved[self.layer_at], axis=0)])
        layers = (*self.layer_at, len(self.short.layers))
        return all_before - np.array([saved[layer - 1] if layer else _NOTHING for layer in layers])

    def moments(self) -> Iterator[StackMoment]:
        """All moments except those of the head."""
        for moment in self.short.moments(EMBEDDING):
            yield _moment(Point.EMBEDDING, self.short.activations(moment))
        yield _moment(Point.FIRST_GATHER, self.short.activations_at_start(Part("layer", 0)))
        positions = list(self._positions())
        for position in positions:
            yield from self._forward(position)
        for point, backward in ((Point.KEPT, False), (Point.KEPT_OVER, True)):
            yield _moment(point, self.saved_before[backward][self.depth] + self.saved[backward][-1])
        for position in positions:
            if self._has_backward(position):
                yield from self._backward(position)
        yield from self._tail()

    def _positions(self) -> Iterator[int]:
        """Positions that may be the peak.

        Memory changes linearly along layers of one kind, so the first and last ones are enough.
        """
        for position in range(self.depth):
            neighbors = self.kinds[max(position - 1, 0) : position + 2]
            if position in (0, 1, self.depth - 2, self.depth - 1) or len(set(neighbors)) > 1:
                yield position

    def _forward(self, position: int) -> Iterator[StackMoment]:
        part, before = Part("layer", self.layer_at[position]), self.saved_before[False][position]
        yield _moment(Point.GATHER, self.short.activations_at_start(part) + before)
        for moment in self.short.moments(part):
            yield _moment(Point.FORWARD, self.short.activations(moment) + before)

    def _has_backward(self, position: int) -> bool:
        """Whether a layer has a backward pass; layers before the first one with adapters have none."""
        return bool(self.short.moments(Part("layer", self.layer_at[position], True)))

    def _backward(self, position: int) -> Iterator[StackMoment]:
        layer, points = self.layer_at[position], self._points(position)
        before, finished = self.saved_before[True][position], self.gradients_behind[position]
        root = self.short.gradients(self.short.first(Part("layer", len(self.short.layers) - 1, True)), -1)
        yield _moment(points.start, self._at_backward_start(position), finished=finished, root=root)
        for late, point in ((False, points.middle), (True, points.middle.late)):
            for moment in self.short.moments(Part("layer", layer, True, late)):
                yield _moment(
                    point,
                    self.short.activations(moment) + before,
                    layer=self.short.gradients(moment, layer),
                    newest=self.short.newest_gradient(moment),
                    finished=finished,
                    root=root,
                )
        left = self._after_backward(position)
        yield _moment(points.end, left, layer=self.gradients[position], finished=finished, root=root)

    def _points(self, position: int) -> _BackwardPoints:
        if position == self.depth - 1:
            return _OF_LAST
        return _OF_OTHERS if position else _OF_FIRST

    def _at_backward_start(self, position: int) -> np.ndarray:
        part = Part("layer", self.layer_at[position], True)
        return self.short.activations_at_start(part) + self.saved_before[True][position]

    def _after_backward(self, position: int) -> np.ndarray:
        """The memory at the end of a layer's backward pass, which is the start of the next part."""
        if position and self._has_backward(position - 1):
            return self._at_backward_start(position - 1)
        return self.short.activations_at_start(TAIL) if self.short.moments(TAIL) else _NOTHING

    def _tail(self) -> Iterator[StackMoment]:
        """The backward pass of the embeddings, and its end."""
        finished, newest = self.gradients.sum(axis=0), _NOTHING
        for moment in self.short.moments(TAIL):
            newest, root = self.short.newest_gradient(moment), self.short.gradients(moment, -1)
            yield _moment(Point.TAIL, self.short.activations(moment), newest=newest, finished=finished, root=root)
        yield _moment(Point.TAIL_END, _NOTHING, newest=newest, finished=finished, root=self.short.all_gradients(-1))


def _layer_at(short: Sequence[str], kinds: Sequence[str]) -> list[int]:
    """The layer of the short stack that represents the layer at each position of the whole model."""
    between = {kind: layer for layer, kind in enumerate(short) if 0 < layer < len(short) - 1}
    return [0, *(between[kind] for kind in kinds[1:-1]), len(short) - 1]


def _head_moments(short: _ShortStack) -> Iterator[StackMoment]:
    for moment in short.moments(HEAD):
        point = Point.HEAD_OVER if short.forward_is_over(moment) else Point.HEAD
        yield _moment(point, short.outside_layers(moment))
    yield _moment(Point.TURN, short.outside_layers_at_start(LOSS))
    for moment in short.moments(LOSS):
        layer, newest = short.gradients(moment, -1), short.newest_gradient(moment)
        yield _moment(Point.LOSS, short.outside_layers(moment), layer=layer, newest=newest)


def envelope(moments: list[StackMoment]) -> list[StackMoment]:
    """Drop moments that are dominated by another one at the same point."""
    kept = []
    for point in Point:
        terms = np.round([m[1:] for m in moments if m.point == point], 3).reshape(-1, len(StackMoment._fields) - 1)
        kept += [StackMoment(point, *map(float, row)) for row in terms[undominated(terms, decimals=3)]]
    return kept
