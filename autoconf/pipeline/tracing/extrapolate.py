"""What a model holds besides its parameters at each point of a micro-batch, whatever its depth and its sharding.

It is put together from the storages of a short stack (``autoconf.pipeline.tracing.ledger``).

Decoder layers of one kind hold the same. So a moment of a layer at any depth is what the same moment of the short stack
holds, plus what the layers before it saved for their backward pass; gradients are kept apart, because how many of them
are whole at a time is the sharding's affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from autoconf.memory.envelope import undominated
from autoconf.memory.profile import Point, StackMoment
from autoconf.pipeline.tracing.ledger import Storages
from autoconf.pipeline.tracing.recorder import EMBEDDING, HEAD, LOSS, TAIL, Part, TraceError

_NONE = np.zeros(4)


class _Short:
    """Moments of a short stack; sizes have the columns of ``ledger.Size``."""

    def __init__(self, storages: Storages, layers: Sequence[str]) -> None:
        self.storages, self.layers = storages, layers
        at = np.arange(len(storages.born))
        self.alive = (storages.born <= at[:, None]) & (storages.dead > at[:, None])  # moments x storages
        self.is_gradient = storages.gradient_of > -2
        self._born_in = np.array([p.layer if p.segment == "layer" and not p.backward else -1 for p in storages.parts])
        # Autocast keeps its copies of weights until the model's forward is over; checkpoints and saved tensors stay.
        self._kept = {backward: self._kept_at(self.first(LOSS if backward else HEAD)) for backward in (False, True)}
        self.saved = {
            backward: [storages.sizes[kept == index].sum(axis=0) for index in range(len(layers))]
            for backward, kept in self._kept.items()
        }

    def _kept_at(self, moment: int) -> np.ndarray:
        """The layer whose forward pass made a storage that is alive at a moment; -1 otherwise."""
        return np.where(self.alive[moment] & ~self.is_gradient, self._born_in, -1)

    def moments(self, part: Part) -> list[int]:
        return [index for index, other in enumerate(self.storages.parts) if other == part]

    def first(self, part: Part) -> int:
        return self.storages.parts.index(part)

    def below(self, part: Part) -> int:
        """The layers before a part that it leaves alone; it may use up what the one right before it saved."""
        if part in (HEAD, LOSS):
            return len(self.layers) - 1
        return max(part.layer - 1, 0)

    def is_over(self, moment: int) -> bool:
        """Whether the forward pass is over, and what it kept for itself is gone."""
        if self.storages.parts[moment] != HEAD:
            return self.storages.parts[moment].backward
        kept = self._kept[False]
        return not self.alive[moment][(kept >= 0) & (kept < len(self.layers) - 1)].all()

    def activations(self, moment: int) -> np.ndarray:
        """Bytes alive but for gradients and for what the layers ``below`` saved."""
        part = self.storages.parts[moment]
        kept = self._kept[self.is_over(moment)]
        below = (kept >= 0) & (kept < self.below(part))
        earlier = below & (self.storages.born < moment)
        if not self.alive[moment][earlier].all():
            raise TraceError(f"{part} frees what an earlier layer saved")
        return self.storages.sizes[self.alive[moment] & ~below & ~self.is_gradient].sum(axis=0)

    def outside(self, moment: int) -> np.ndarray:
        """Bytes alive but for gradients and for what the layers' forward pass made."""
        return self.storages.sizes[self.alive[moment] & (self._born_in < 0) & ~self.is_gradient].sum(axis=0)

    def gradients(self, moment: int, layer: int) -> np.ndarray:
        """Gradients of a layer's parameters (-1: of the rest of the model) that exist already."""
        return self.storages.sizes[self.alive[moment] & (self.storages.gradient_of == layer)].sum(axis=0)

    def all_gradients(self, layer: int) -> np.ndarray:
        return self.storages.sizes[self.storages.gradient_of == layer].sum(axis=0)

    def newborn(self, moment: int) -> np.ndarray:
        return self.storages.sizes[moment] if self.is_gradient[moment] else _NONE

    def boundary(self, moment: int) -> np.ndarray:
        """Bytes alive when a part begins, before its first storage."""
        return self.activations(moment) - (_NONE if self.is_gradient[moment] else self.storages.sizes[moment])


def layer_moments(storages: Storages, short: Sequence[str], kinds: Sequence[str]) -> list[StackMoment]:
    """Moments of the whole model but for those of its head, and of them only what no other exceeds.

    Args:
        storages: of a short stack.
        short: kinds of its layers; the first and the last one are those of the whole model, and each kind is among the
            others.
        kinds: kinds of the whole model's layers.

    Raises:
        TraceError: layers of the short stack do not hold what they should.
    """
    return _envelope(list(_layer_moments(_Short(storages, short), kinds)))


def head_moments(storages: Storages, short: Sequence[str], rank: int) -> list[StackMoment]:
    """Moments of head and loss, without what the layers keep; likewise.

    Nothing there has to do with adapters: what looks like a multiple of their rank is one by chance.
    """
    moments = _head_moments(_Short(storages, short))
    return _envelope(
        [
            m._replace(
                constant=m.constant + rank * m.constant_per_rank,
                per_token=m.per_token + rank * m.per_token_per_rank,
                constant_per_rank=0.0,
                per_token_per_rank=0.0,
            )
            for m in moments
        ]
    )


def _layer_moments(short: _Short, kinds: Sequence[str]) -> Iterator[StackMoment]:
    deep = len(kinds)
    stands_for = _stands_for(short.layers, kinds)
    below = {backward: _before(short, stands_for, backward) for backward in (False, True)}
    gradient = np.array([short.all_gradients(layer) for layer in stands_for])
    after = np.concatenate([np.cumsum(gradient[::-1], axis=0)[::-1][1:], [_NONE]])
    root = short.gradients(short.first(Part("layer", len(short.layers) - 1, True)), -1)

    for index in short.moments(EMBEDDING):
        yield _moment(Point.EMBEDDING, short.activations(index))
    yield _moment(Point.FIRST_GATHER, short.boundary(short.first(Part("layer", 0))))
    for position, layer in _representatives(kinds, stands_for):
        part = Part("layer", layer)
        yield _moment(Point.GATHER, short.boundary(short.first(part)) + below[False][position])
        for index in short.moments(part):
            yield _moment(Point.FORWARD, short.activations(index) + below[False][position])
    yield _moment(Point.KEPT, below[False][deep] + short.saved[False][-1])
    yield _moment(Point.KEPT_OVER, below[True][deep] + short.saved[True][-1])
    for position, layer in _representatives(kinds, stands_for):
        if not short.moments(Part("layer", layer, True)):
            continue  # before the first layer with adapters nothing has to be passed back
        begin = short.first(Part("layer", layer, True))
        grown = {"done": after[position], "rest": root}
        last, first = position == deep - 1, position == 0
        start = Point.LAST_START if last else Point.FIRST_START if first else Point.START
        yield _moment(start, short.boundary(begin) + below[True][position], **grown)
        for late in (False, True):
            point = Point.LAST if last else Point.FIRST if first else Point.MIDDLE
            for index in short.moments(Part("layer", layer, True, late)):
                yield _moment(
                    point.late if late else point,
                    short.activations(index) + below[True][position],
                    short.gradients(index, layer),
                    short.newborn(index),
                    **grown,
                )
        end = Point.FIRST_END if first else Point.END
        left = _left(short)
        if position and short.moments(before := Part("layer", stands_for[position - 1], True)):
            left = short.boundary(short.first(before)) + below[True][position - 1]
        yield _moment(end, left, gradient[position], **grown)
    every = gradient.sum(axis=0)
    tail = short.moments(TAIL)
    for index in tail:
        yield _moment(Point.TAIL, short.activations(index), done=every, rest=short.gradients(index, -1),
                     newborn=short.newborn(index))  # fmt: skip
    yield _moment(Point.TAIL_END, _NONE, done=every, rest=short.all_gradients(-1),
                 newborn=short.newborn(tail[-1]) if tail else _NONE)  # fmt: skip


def _before(short: _Short, stands_for: Sequence[int], backward: bool) -> np.ndarray:
    """What the layers before each position saved, less what the one right before its stand-in saved, which is counted
    with the stand-in; shape (positions + 1, 4), the last one for the head.
    """
    saved = np.array(short.saved[backward])
    before = np.concatenate([[_NONE], np.cumsum(saved[stands_for], axis=0)])
    right_before = np.array([saved[layer - 1] if layer else _NONE for layer in (*stands_for, len(short.layers))])
    return before - right_before


def _left(short: _Short) -> np.ndarray:
    """What is held when the first layer's backward pass is over."""
    tail = short.moments(TAIL)
    return short.boundary(tail[0]) if tail else _NONE


def _head_moments(short: _Short) -> Iterator[StackMoment]:
    for index in short.moments(HEAD):
        yield _moment(Point.HEAD_OVER if short.is_over(index) else Point.HEAD, short.outside(index))
    first = short.first(LOSS)
    yield _moment(Point.TURN, short.outside(first) - short.storages.sizes[first])
    for index in short.moments(LOSS):
        yield _moment(Point.LOSS, short.outside(index), short.gradients(index, -1), short.newborn(index))


def _moment(
    point: Point, held: np.ndarray, own: np.ndarray = _NONE, newborn: np.ndarray = _NONE, done: np.ndarray = _NONE,
    rest: np.ndarray = _NONE,
) -> StackMoment:  # fmt: skip
    return StackMoment(point, *map(float, held), *(float(g[0] + g[2]) for g in (own, newborn, done, rest)))


def _stands_for(short: Sequence[str], kinds: Sequence[str]) -> list[int]:
    """The layer of the short stack that stands for each of the whole model's."""
    middle = {kind: index for index, kind in enumerate(short) if 0 < index < len(short) - 1}
    return [0, *(middle[kind] for kind in kinds[1:-1]), len(short) - 1]


def _representatives(kinds: Sequence[str], stands_for: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Positions of the whole model that may be the peak, each with the layer of the short stack that stands for it.

    What is held grows or falls evenly along layers of one kind: their ends are enough.
    """
    deep = len(kinds)
    for position, layer in enumerate(stands_for):
        neighbors = kinds[max(position - 1, 0) : position + 2]
        if position in (0, 1, deep - 2, deep - 1) or len(set(neighbors)) > 1:
            yield position, layer


def _envelope(moments: list[StackMoment]) -> list[StackMoment]:
    """Drop moments that another one at the same point exceeds in every term."""
    kept = []
    for point in Point:
        terms = np.round([m[1:] for m in moments if m.point == point], 3).reshape(-1, len(StackMoment._fields) - 1)
        kept += [StackMoment(point, *map(float, row)) for row in terms[undominated(terms, decimals=3)]]
    return kept
