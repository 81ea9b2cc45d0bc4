"""Copies of a bucket of gradients that ZeRO-3 makes to reduce it, by the gradient that does not fit any more.

Source: DeepSpeed 0.19.8, runtime/zero/stage3.py, reduce_independent_p_g_buckets_and_remove_grads, and
runtime/comm/coalesced_collectives.py, reduce_scatter_coalesced. All sizes are numbers of elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from autoconf.memory.zero_calls import Layer, ModelCalls, Module


class Arrival(NamedTuple):
    """A gradient, and the bucket that it does not fit into; ``before`` and ``with_it`` are of its layer.

    Attributes:
        before: gradients before it.
        with_it: the same with it.
        copied: elements of the bucket's copy; 0 if the gradient fits, or if the bucket has one gradient.
        largest: elements of the largest gradient that is reduced before it; 0 if it fits.
    """

    before: int
    with_it: int
    copied: int
    largest: int = 0


@lru_cache(maxsize=1024)  # jobs of a table share models and buckets
def arrivals(
    model: ModelCalls, bucket: int, *, adapters: bool, head: int = 0, embeddings: int = 0
) -> dict[str, tuple[Arrival, ...]]:
    """The gradients of a micro-batch by its parts ``loss``, ``last``, ``middle``, ``first`` and ``tail``.

    Args:
        model: the modules.
        bucket: elements of a bucket.
        adapters: whether adapters are trained, and of the rest only what follows.
        head: elements of a head that is trained beside adapters.
        embeddings: elements of embeddings that are trained beside adapters.

    >>> model = ModelCalls((), (Layer((Module((2,)),), (Module((3,)), Module((4,)))),), norm=(), head=())
    >>> for arrival in arrivals(model, bucket=8, adapters=False)["last"]:
    ...     print(arrival)
    Arrival(before=0, with_it=4, copied=0, largest=0)
    Arrival(before=4, with_it=7, copied=0, largest=0)
    Arrival(before=7, with_it=9, copied=7, largest=4)
    """
    found: dict[str, dict[Arrival, None]] = {part: {} for part in ("loss", "last", "middle", "first", "tail")}
    filled = count = most = 0
    for part, gradients in _parts(model, adapters=adapters, beside=(head, embeddings)):
        before = 0
        for gradient in gradients:
            copied = largest = 0
            if filled + gradient > bucket:
                copied, largest = filled if count > 1 else 0, most
                filled = count = most = 0
            found[part][Arrival(before, before + gradient, copied, largest)] = None
            before, filled, count, most = before + gradient, filled + gradient, count + 1, max(most, gradient)
    return {part: tuple(of_part) for part, of_part in found.items()}


def _parts(model: ModelCalls, *, adapters: bool, beside: tuple[int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The gradients of each part, in the order of the backward pass."""
    head, embeddings = (tuple(size for size in [whole] if size) for whole in beside)
    yield "loss", head if adapters else (*model.head, *model.norm)
    last = len(model.layers) - 1
    for index in range(last, -1, -1):
        part = "last" if index == last else "first" if index == 0 else "middle"
        yield part, _of_layer(model.layers[index], adapters=adapters)
    yield "tail", embeddings if adapters else model.embeddings


@lru_cache(maxsize=1024)
def _of_layer(layer: Layer, *, adapters: bool) -> tuple[int, ...]:
    modules: Iterator[Module] = reversed((*layer.attention, *layer.mlp))
    if adapters:
        return tuple(size for module in modules for size in reversed(module.adapter or ()))
    return tuple(size for module in modules for size in reversed(module.own))
