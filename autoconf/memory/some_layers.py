"""Adapters on some of the layers: PEFT's ``layers_to_transform``.

Adapters are counted exactly, because layers of one kind have equal ones. What layers hold was traced with adapters on
all of them, which is an upper bound for layers without. Layers before the first one with adapters keep nothing for a
backward pass, unless the inputs of the model have gradients: those of checkpoints, and of embeddings that are trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from autoconf.jobs.lora_layers import as_text
from autoconf.jobs.stack import Stack
from autoconf.memory.adapted import AdaptedModules, NamedModules
from autoconf.memory.profile import Point, StackMoment, Trainable
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import Floats, Unsupported

_LAYER, _FINISHED = map(StackMoment._fields.index, ("layer_gradients", "finished_gradients"))
_ACTIVATIONS = slice(1, 5)
# Points at which layers before the one that runs have kept their tensors. Of those in a backward pass, only moments of
# the layers next to the head: the gradients that are finished by then show which these are.
_IN_FORWARD = (Point.GATHER, Point.FORWARD, Point.KEPT)
_AT_TURN = (Point.KEPT_OVER, Point.LAST_START, Point.LAST, Point.LAST_LATE)
_IN_BACKWARD = (Point.START, Point.MIDDLE, Point.MIDDLE_LATE, Point.END)


@dataclass(frozen=True)
class SomeLayers:
    """Layers with adapters.

    Attributes:
        layers: number of layers of the model.
        adapted: how many have adapters.
        before: how many layers before the first one with adapters keep nothing for a backward pass.
    """

    layers: int
    adapted: int
    before: int

    @property
    def share(self) -> float:
        """The part of the layers that have adapters."""
        return self.adapted / self.layers

    def trainable(self, of_all: Trainable) -> Trainable:
        """The adapters, given those of all layers; per rank."""
        units = replace(of_all.units, trainable=of_all.units.trainable * self.adapted // self.layers)
        shapes = tuple((shape, count * self.adapted // self.layers) for shape, count in of_all.shapes)
        return Trainable(units, shapes)

    def moments(self, of_all: Floats) -> Floats:
        """The moments of layers, given those with adapters on all; columns of ``StackMoment``, shape (moments, 9)."""
        found, points = of_all.copy(), of_all[:, 0]
        total = found[:, _FINISHED].max()
        most = total * self.share - np.where(points == Point.LOSS, 0.0, found[:, _LAYER])
        early = np.isin(points, _IN_BACKWARD) & (found[:, _FINISHED] >= total / 2)
        found[:, _FINISHED] = np.minimum(found[:, _FINISHED], np.maximum(most, 0.0))
        # At least two layers stay, because the one before is among what a layer's moments hold.
        skipped = min(self.before, self.layers - 2) / self.layers
        for of_these, point in ((_IN_FORWARD, Point.KEPT), ((*_AT_TURN, *_IN_BACKWARD), Point.KEPT_OVER)):
            # Each layer keeps as much, but the first one may keep less, so the others keep at least their share.
            kept = of_all[points == point][0, _ACTIVATIONS]
            at = np.isin(points, of_these) & ~early
            found[at, _ACTIVATIONS] = np.maximum(found[at, _ACTIVATIONS] - skipped * kept, 0.0)
        return found


def some_layers(
    table: ModelsTable, model: str, stack: Stack, targets: str, named: NamedModules | None
) -> SomeLayers | None:
    """The layers with adapters that a job names; ``None`` if these are all layers.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack, of a job with adapters.
        targets: the group of modules with adapters, as of which layers were traced.
        named: the modules with adapters that the job names, if it does.

    Raises:
        Unsupported: the model does not have so many layers, or these have different adapters.
    """
    if not stack.lora_layers:
        return None
    setting, modules = f"lora_layers {as_text(stack.lora_layers)!r} of {model}", table.modules(model)
    if modules is None:
        raise Unsupported([setting], ": it is not known which of its layers have which modules")
    layers = sum(modules.layers.values())
    if max(stack.lora_layers) >= layers:
        raise Unsupported([setting], f": its layers are 0 to {layers - 1}")
    if len(stack.lora_layers) == layers:
        return None
    paths = named.paths if named is not None else next(of for group, of in modules.groups.items() if group == targets)
    if not _alike(modules, paths):
        raise Unsupported([setting], ": its layers are of several kinds, whose adapters differ")
    recomputes = stack.gradient_checkpointing != "none"
    keeping = recomputes or stack.trains_embeddings or len(modules.layers) > 1
    return SomeLayers(layers, len(stack.lora_layers), 0 if keeping else min(stack.lora_layers))


def _alike(modules: AdaptedModules, paths: Iterable[str]) -> bool:
    """Whether all layers of a model have equal adapters."""
    kinds = {tuple(of_kind.get(path) for path in paths) for of_kind in modules.modules.values()}
    return len(modules.layers) == 1 or (len(kinds) == 1 and None not in next(iter(kinds)))
