"""Checkpoints whose layers' inputs are in the memory of the host (``gradient_checkpointing: offloaded``), a bound.

A layer that is recomputed saves its input alone. These leave the GPU, but some are on it at any moment:

- TRL 1.9.0 (trl/models/activation_offloading.py, OffloadActivations) and torchtune 0.6.1
  (torchtune/training/_activation_offloading.py) copy each of them in a second stream, and hold
  ``max_fwd_stash_size`` of them until their copies are done, with that of the running layer, up to the first backward
  pass of a tensor that they moved. In the backward pass an input is back until that of the layer before it is used.
- unsloth_zoo 2026.10.9 (gradient_checkpointing.py, UnslothCheckpointFunction) copies an input while its layer runs,
  leaves that of the last layer, and brings the others back into one or two buffers that stay: in a forward or backward
  pass never more than the above.

What the head keeps for the backward pass is counted on the GPU, although TRL and torchtune also move a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.profile import HeadWay, LayerWay, Point
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import Floats, Unsupported

IN_FLIGHT = 5  # TRL's and torchtune's max_fwd_stash_size
_TOKENS, _FINISHED = 2, 7  # columns of ``StackMoment``
# Up to the first backward pass of a moved tensor, at the latest that of the last layer.
_AT_LAST = (Point.FORWARD, Point.KEPT, Point.KEPT_OVER, Point.LAST_START, Point.LAST, Point.LAST_LATE)
_OF_OTHERS = (Point.START, Point.MIDDLE, Point.MIDDLE_LATE, Point.END)


@dataclass(frozen=True)
class SavedInputs:
    """The inputs that the layers of a model save if they are recomputed.

    Attributes:
        layers: number of layers.
        per_token: bytes of an input for each token.
        beside: bytes for each token that the head keeps for the backward pass, of which TRL and torchtune move some.
    """

    layers: int
    per_token: float
    beside: float = 0.0

    @classmethod
    def of(cls, table: ModelsTable, model: str, moments: Floats) -> SavedInputs:
        """The inputs of a model.

        Args:
            table: the profiles of models.
            model: a model of the table.
            moments: those of its layers, recomputed.

        Raises:
            Unsupported: its layers are of several kinds, so it is not known at which of them a moment is.
        """
        modules = table.modules(model)
        if modules is None or len(modules.layers) > 1:
            kinds = "not known" if modules is None else ", ".join(modules.layers)
            raise Unsupported(
                [f"gradient_checkpointing 'offloaded' of {model}"],
                f": it is known for layers of one kind (here {kinds})",
            )
        layers = sum(modules.layers.values())
        # These many more exist at the start of the backward pass of the last layer but one than of the second one.
        starts = moments[moments[:, 0] == Point.START][:, _TOKENS]
        return cls(layers, float(np.ptp(starts)) / max(layers - 3, 1))

    def on_host(self, moments: Floats) -> Floats:
        """The moments of layers that are recomputed, without the inputs that are on the host.

        Args:
            moments: with the columns of ``StackMoment``, shape (moments, 9).
        """
        found = moments.copy()
        found[:, _TOKENS] -= self.per_token * self._moved(moments)
        return found

    def _moved(self, moments: Floats) -> Floats:
        """How many of the inputs that exist at each moment are on the host; -1 if one more is on the GPU.

        Moments are those of the first two and last two layers. The forward pass of an earlier layer than the last one
        holds less in any case, so its moments are not in a profile.
        """
        points = moments[:, 0]
        moved = np.zeros(len(moments))
        moved[points == Point.GATHER] = max(0, self.layers - 1 - IN_FLIGHT)  # before the last layer saves its own
        moved[np.isin(points, _AT_LAST)] = max(0, self.layers - IN_FLIGHT)
        # Of the inputs of the layers up to the running one, its own is on the GPU, and that of the layer after it.
        of_others = np.isin(points, _OF_OTHERS)
        moved[of_others] = self._layer(moments[of_others], moments) - 1
        moved[(points >= Point.FIRST_START) & (points <= Point.FIRST_LATE)] = -1
        moved[np.isin(points, [Point.FIRST_END, Point.TAIL, Point.TAIL_END])] = -1
        return moved

    def _layer(self, some: Floats, moments: Floats) -> Floats:
        """The number of the layer, from 0, of moments of the backward pass, from the gradients of those after it."""
        of_each = moments[moments[:, 0] == Point.TAIL_END][:, _FINISHED].max() / self.layers
        return np.asarray(self.layers - 1 - np.round(some[:, _FINISHED] / of_each))


def inputs_on_host(table: ModelsTable, model: str, stack: Stack, layers: LayerWay, head: HeadWay) -> SavedInputs | None:
    """The inputs that a job's checkpoints keep on the host; ``None`` if they stay on the GPU or have no profile.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack.
        layers: how the layers run.
        head: how head and loss run.

    Raises:
        Unsupported: as for ``SavedInputs.of``.
    """
    if stack.gradient_checkpointing != "offloaded":
        return None
    of_layers, of_head = table.moments(model, layers), table.moments(model, head)
    if of_layers is None or of_head is None:
        return None
    turn = of_head[of_head[:, 0] == Point.TURN][:, _TOKENS].max()
    return replace(SavedInputs.of(table, model, of_layers), beside=float(turn))
