"""Embeddings and head that are trained whole beside adapters: PEFT's ``modules_to_save``.

peft 0.21.2, utils/other.py, ModulesToSaveWrapper.update: the trained module is a copy, and the frozen one stays on the
GPU. It has the dtype of the frozen one: tuners/tuners_utils.py, cast_adapter_dtype, makes only adapters float32. The
head of a model that shares it with its embeddings gets a copy of its own, unless ``ensure_weight_tying`` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import LayerWay, Point, StackMoment, Trainable
from autoconf.memory.units import Floats, Unsupported

if TYPE_CHECKING:
    from autoconf.memory.store import ModelsTable

_LAYER, _NEWEST, _ROOT = map(StackMoment._fields.index, ("layer_gradients", "newest_gradient", "root_gradients"))
_ACTIVATIONS = slice(1, 5)
_AT_ENDS = (Point.EMBEDDING, Point.FIRST_GATHER, Point.TAIL, Point.TAIL_END)


@dataclass(frozen=True)
class TrainedWhole:
    """Copies of embeddings and head that are trained beside adapters.

    Attributes:
        embeddings: parameters of the copy of the embeddings; 0 if they are frozen.
        head: parameters of the copy of the head; 0 if it is frozen.
        hidden: elements of a hidden state.
        stored: bytes of a parameter while it is trained.
        computing: bytes of a parameter in the dtype of computation, and of its gradient.
    """

    embeddings: int = 0
    head: int = 0
    hidden: int = 1
    stored: int = 2
    computing: int = 2

    @classmethod
    def of(cls, stack: Stack, full: Trainable, *, stored: int, computing: int) -> TrainedWhole:
        """The copies of a stack; bytes as in the attributes.

        Args:
            stack: the training stack.
            full: all parameters of the model.
        """
        embedding = max((shape for shape, _ in full.shapes if shape.embedding), key=lambda shape: shape.elements)
        return cls(
            embedding.elements * stack.trains_embeddings,
            embedding.elements * stack.trains_head,
            embedding.dimensions[-1],
            stored,
            computing,
        )

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.embeddings + self.head

    @property
    def weights(self) -> int:
        """Bytes of the parameters as stored."""
        return self.parameters * self.stored

    @property
    def gradients(self) -> int:
        """Bytes of the gradients, and of gathered parameters."""
        return self.parameters * self.computing

    def shapes(self, *, flat: bool) -> list[Shape]:
        """The optimizer's shapes; with FSDP1 they are pieces of flat parameters."""
        copies = [(self.embeddings, True), (self.head, False)]
        return [
            Shape((size,) if flat else (size // self.hidden, self.hidden), self.stored, embedding)
            for size, embedding in copies
            if size
        ]

    def moments(self, of_adapters: Callable[[], Floats], rank: int, kept_by_layer: Floats | None) -> Floats:
        """The moments of a job with adapters, and a head that is trained or not, with the gradients of the copies.

        Args:
            of_adapters: makes moments with the columns of ``StackMoment``, shape (moments, 9).
            rank: rank of the adapters, by which gradients will be multiplied.
            kept_by_layer: activations that a layer keeps for the backward pass, if layers are not recomputed. The first
                layer keeps less than others if its input needs no gradient, which it was traced with.
        """
        found = of_adapters().copy()
        points = found[:, 0]
        loss, tail = points == Point.LOSS, points == Point.TAIL_END
        head, both = self.head * self.computing / rank, self.gradients / rank
        found[loss, _LAYER : _NEWEST + 1] = np.minimum(found[loss, _LAYER : _NEWEST + 1] / rank, head)
        found[(points >= Point.LAST_START) & (points <= Point.FIRST_END), _ROOT] += head
        found[np.isin(points, [Point.TAIL, Point.TAIL_END]), _ROOT] += both
        if not self.embeddings:
            return found
        if kept_by_layer is not None:
            found[~np.isin(points, _AT_ENDS), _ACTIVATIONS] += kept_by_layer
        found[tail, _NEWEST] = self.embeddings * self.computing / rank
        gradient = found[tail].copy()
        gradient[:, 0] = Point.TAIL
        gradient[:, 2] += 8 * self.hidden  # of the embeddings' output, in up to float32, and a copy
        return np.concatenate([found, gradient])


FROZEN = TrainedWhole()


def kept_by_layer(table: ModelsTable, model: str, stack: Stack, way: LayerWay) -> Floats | None:
    """At most what a layer keeps for the backward pass whose input needs a gradient, as trained embeddings need it.

    Layers of a kind keep as much, but the first one was traced without that gradient, so it may keep less.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack.
        way: how its layers run.

    Returns:
        Bytes with the columns of activations; ``None`` if layers are recomputed, or embeddings are frozen.

    Raises:
        Unsupported: no other layer is of the kind of the first one, or the kinds are not known.
    """
    moments = table.moments(model, way)
    if moments is None or not stack.trains_embeddings or stack.gradient_checkpointing != "none":
        return None
    modules = table.modules(model)
    count = 1 if modules is None else next(iter(modules.layers.values()))
    if count < 2:
        raise Unsupported(
            [f"trained_modules {stack.trained_modules!r} of {model} with gradient_checkpointing 'none'"],
            ": what the first layer keeps is not known, because no other one is known to be of its kind",
        )
    kept = moments[np.isin(moments[:, 0], [Point.KEPT, Point.KEPT_OVER])]
    return np.asarray(kept[:, _ACTIVATIONS].max(axis=0) / (count - 1))
