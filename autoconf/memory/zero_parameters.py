"""The parameters that a GPU has gathered under ZeRO-3: DeepSpeed's coordinator, played through once.

Source: DeepSpeed 0.19.8, runtime/zero/partitioned_param_coordinator.py. All sizes are numbers of elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from autoconf.jobs.stack import ZeroBuckets
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import Point


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
def model_sizes(
    shapes: tuple[tuple[Shape, int], ...], layers: int, rank: int = 1, *, adapters: int = 0, quantized: bool = False
) -> ModelSizes:
    """Order the parameters of a model: a shape that occurs less often than there are layers belongs to the head.

    Args:
        shapes: shapes of parameters, each with the number of parameters that have it.
        layers: number of decoder layers, >= 1.
        rank: rank of adapters, if the parameters are adapters of rank 1.
        adapters: rank of adapters that follow every matrix of a layer; 0 for none.
        quantized: whether matrices of layers (but not experts in one tensor) have 4 bits and are stored in bfloat16.

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
            own = [elements]
            if len(shape.dimensions) == 2:
                own = [elements // 4 if quantized else elements, *(adapters * size for size in shape.dimensions[::-1])]
                own = own if adapters else own[:1]
            for index in range(layers):
                of_layers[index] += own * ((count * (index + 1)) // layers - (count * index) // layers)
    return ModelSizes(tuple(embeddings), tuple(map(tuple, of_layers)), tuple(head))


# The parts of a micro-batch whose gathered parameters are told apart, by the points of the memory profile.
PARTS: dict[str, tuple[Point, ...]] = {
    "forward": (Point.EMBEDDING, Point.FIRST_GATHER, Point.GATHER, Point.FORWARD),
    "head": (Point.HEAD, Point.HEAD_OVER, Point.TURN, Point.LOSS),
    "last": (Point.LAST_START, Point.LAST, Point.LAST_LATE),
    "middle": (Point.START, Point.MIDDLE, Point.MIDDLE_LATE, Point.END),
    "first": (Point.FIRST_START, Point.FIRST, Point.FIRST_LATE, Point.FIRST_END),
    "tail": (Point.TAIL, Point.TAIL_END),
}


# A call of a module, forward or backward: its part, and the index of the parameter that it has itself, if any.
_Call = tuple[str, int | None]


@lru_cache(maxsize=2048)  # jobs of a table share models and buckets
def gathered_parameters(
    sizes: ModelSizes, buckets: BucketSizes, *, recomputes: bool, adapted: int = 0
) -> dict[Point, int]:
    """The most parameters, in elements, that a GPU has gathered at each point of a micro-batch.

    Args:
        sizes: parameters of the model, without those that always stay gathered.
        buckets: DeepSpeed's settings.
        recomputes: whether layers run forward again in the backward pass.
        adapted: number of modules of a layer that have an adapter.

    >>> sizes = ModelSizes((64,), ((16,) * 4,) * 3, (64,))
    >>> gathered_parameters(sizes, BucketSizes.of(ZeroBuckets(), 4), recomputes=True)[Point.TURN]
    320
    """
    numels, calls = _program(sizes, recomputes=recomputes, adapted=adapted)
    coordinator = _Coordinator(numels, calls, buckets)
    most, before = dict.fromkeys(PARTS, 0), calls[0][0]
    for step, (part, parameter) in enumerate(calls):
        fetching, running = coordinator.call(step, parameter)
        if fetching > most[before]:  # the module itself has not begun
            most[before] = fetching
        if running > most[part]:
            most[part] = running
        before = part
    return {point: most[part] for part, points in PARTS.items() for point in points}


def _program(sizes: ModelSizes, *, recomputes: bool, adapted: int) -> tuple[list[int], list[_Call]]:
    """The size of each parameter, and all calls of a micro-batch."""
    numels = sizes.flat()
    ids = iter(range(len(numels)))
    embeddings = [next(ids) for _ in sizes.embeddings]
    layers = [list(_calls_of_layer([next(ids) for _ in layer], adapted)) for layer in sizes.layers]
    head = [next(ids) for _ in sizes.head] or embeddings[:1]
    last = len(layers) - 1
    calls: list[_Call] = [("forward", parameter) for parameter in (None, None, *embeddings)]
    calls += [("forward", parameter) for layer in layers for parameter in layer]
    calls += [("head", parameter) for parameter in (*head, *reversed(head))]
    for index in range(last, -1, -1):
        part = "last" if index == last else "first" if index == 0 else "middle"
        again = layers[index] if recomputes else []
        calls += [(part, parameter) for parameter in (*again, *reversed(layers[index]))]
    calls += [("tail", parameter) for parameter in reversed(embeddings)]
    return numels, calls


def _calls_of_layer(parameters: list[int], adapted: int) -> Iterator[int | None]:
    """A decoder layer calls its modules, and those that only contain modules: itself, attention, MLP, activation.

    An adapter adds two of these: the module around its layer, and dropout.
    """
    half, every = len(parameters) // 2, max(1, len(parameters) // (2 * adapted)) if adapted else 0
    for index, parameter in enumerate(parameters):
        if index in (0, half):
            yield from (None, None)
        if every and index % every == 0:
            yield None
        yield parameter


@dataclass
class _Group:
    """Parameters that are gathered together, into one flat buffer, and copied out of it when they are needed."""

    parameters: set[int]
    numel: int
    copied: bool = False


class _Coordinator:
    """PartitionedParameterCoordinator with a complete trace."""

    def __init__(self, numels: list[int], calls: list[_Call], buckets: BucketSizes) -> None:
        self.numels, self.buckets = numels, buckets
        self.available = 0  # its __n_available_params
        self.held = 0  # elements, including flat buffers
        self.gathered = [False] * len(numels)
        self.groups: dict[int, _Group] = {}  # by parameters in flight
        self.fetched_for = [-1] * len(numels)  # its __most_recent_step_id_param_fetched_for
        self.queue = [(parameter, step) for step, (_, parameter) in enumerate(calls) if parameter is not None]
        self.position = 0
        self.used_soon = self._reuses(len(calls))

    def _reuses(self, calls: int) -> list[bool]:
        """By call: whether its parameter is used again within ``stage3_max_reuse_distance`` elements."""
        soon, later, after = [False] * calls, [-1] * len(self.numels), 0  # elements from a use, or a call, to the end
        for parameter, step in reversed(self.queue):
            if later[parameter] >= 0:
                soon[step] = after - later[parameter] < self.buckets.stage3_max_reuse_distance
            after += self.numels[parameter]
            later[parameter] = after
        return soon

    def call(self, step: int, parameter: int | None) -> tuple[int, int]:
        """Fetch for a call, prefetch, and release after it; the elements that were held while it fetched and ran."""
        if parameter is None:
            fetching = self.held
            self._prefetch()
            return fetching, self.held
        if not self.gathered[parameter]:  # fetch_sub_module
            self._gather([parameter], self.numels[parameter])
        fetching = max(self.held, self._wait(parameter))
        if self.fetched_for[parameter] < step:
            following, used = self.queue[self.position]
            self.fetched_for[following] = used
            self.position += 1
        self._prefetch()
        running = self.held
        # release_sub_module; __params_to_release keeps what was prefetched for later or is used again soon.
        if self.fetched_for[parameter] <= step + 1 and not self.used_soon[step]:
            self.gathered[parameter] = False
            self.available -= self.numels[parameter]
            self.held -= self.numels[parameter]
        return fetching, running

    def _gather(self, parameters: Sequence[int], numel: int) -> None:
        """all_gather_coalesced of partition_parameters.py; a single parameter is a view of its buffer."""
        for parameter in parameters:
            self.gathered[parameter] = True
        self.available += numel
        self.held += numel
        if len(parameters) > 1:
            self.groups |= dict.fromkeys(parameters, _Group(set(parameters), numel))

    def _wait(self, parameter: int) -> int:
        """AllGatherCoalescedHandle.wait: copies of all parameters; the buffer lives until all have been waited for."""
        group = self.groups.pop(parameter, None)
        if group is None:
            return self.held
        if not group.copied:
            group.copied = True
            self.held += group.numel
        most = self.held
        group.parameters.discard(parameter)
        if not group.parameters:
            self.held -= group.numel
        return most

    def _prefetch(self) -> None:
        most = min(self.buckets.stage3_max_live_parameters - self.available, self.buckets.stage3_prefetch_bucket_size)
        if most <= 0 or self.position == len(self.queue):
            return
        chosen: list[int] = []
        numel = 0
        while self.position < len(self.queue) and numel < most:
            parameter, used = self.queue[self.position]
            self.position += 1
            self.fetched_for[parameter] = max(self.fetched_for[parameter], used)
            if not self.gathered[parameter] and parameter not in chosen:
                chosen.append(parameter)
                numel += self.numels[parameter]
        self._gather(chosen, numel)
