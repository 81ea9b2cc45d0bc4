"""Sizes of DeepSpeed's buckets and of a model's parameters, in numbers of elements."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

from autoconf.jobs.stack import ZeroBuckets
from autoconf.memory.optimizers import Shape


class BucketSizes(NamedTuple):
    """DeepSpeed's settings that change memory, with a number of elements for each size."""

    reduce_bucket_size: int
    stage3_prefetch_bucket_size: int
    stage3_param_persistence_threshold: int
    stage3_max_live_parameters: int
    stage3_max_reuse_distance: int
    sub_group_size: int
    overlap_comm: bool

    @classmethod
    def of(cls, buckets: ZeroBuckets, hidden_size: int) -> BucketSizes:
        """The settings of a job, with the values that transformers fills in for ``auto``.

        >>> BucketSizes.of(ZeroBuckets(), hidden_size=4096).reduce_bucket_size
        16777216
        """
        # transformers 5.23.0, integrations/deepspeed.py, trainer_config_finalize.
        auto = {
            "reduce_bucket_size": hidden_size * hidden_size,
            "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
            "stage3_param_persistence_threshold": 10 * hidden_size,
        }
        return cls(**{**auto, **buckets.model_dump(exclude_none=True)})


class ModelSizes(NamedTuple):
    """Sizes of the parameters of a model in the order in which it uses them; a tied head is empty."""

    embeddings: tuple[int, ...]
    layers: tuple[tuple[int, ...], ...]
    head: tuple[int, ...]

    def flat(self) -> list[int]:
        """All sizes in order."""
        return [*self.embeddings, *itertools.chain.from_iterable(self.layers), *self.head]


@lru_cache(maxsize=1024)  # jobs of a table share models
def model_sizes(shapes: tuple[tuple[Shape, int], ...], layers: int, rank: int = 1) -> ModelSizes:
    """Order the parameters of a model: a shape that occurs less often than there are layers belongs to the head.

    Args:
        shapes: shapes of parameters, each with the number of parameters that have it.
        layers: number of decoder layers, >= 1.
        rank: rank of adapters, if the parameters are adapters of rank 1.

    >>> model_sizes(((Shape((16, 4), 2, True), 1), (Shape((4, 4), 2), 6), (Shape((16, 4), 2), 1)), layers=3)
    ModelSizes(embeddings=(64,), layers=((16, 16), (16, 16), (16, 16)), head=(64,))
    """
    embeddings: list[int] = []
    head: list[int] = []
    of_layers: list[list[int]] = [[] for _ in range(layers)]
    for shape, count in shapes:
        elements = shape.elements * rank
        if shape.embedding:
            embeddings += [elements] * count
        elif count < layers:
            head += [elements] * count
        else:  # norms also occur outside of layers
            for index in range(layers):
                share = (count * (index + 1)) // layers - (count * index) // layers
                of_layers[index] += [elements] * share
    return ModelSizes(tuple(embeddings), tuple(map(tuple, of_layers)), tuple(head))
