"""The parameters that a GPU has gathered under ZeRO-3: DeepSpeed's coordinator, played through once.

Source: DeepSpeed 0.19.8, runtime/zero/partitioned_param_coordinator.py. All sizes are numbers of elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from autoconf.memory.profile import Point
from autoconf.memory.zero_calls import ModelCalls, Segment, micro_batch
from autoconf.memory.zero_parameters import BucketSizes

# The parts of a micro-batch whose gathered parameters are told apart, by the points of the memory profile.
PARTS: dict[str, tuple[Point, ...]] = {
    "forward": (Point.EMBEDDING, Point.FIRST_GATHER, Point.GATHER, Point.FORWARD),
    "head": (Point.HEAD, Point.HEAD_OVER, Point.TURN),
    "loss": (Point.LOSS,),
    "last": (Point.LAST_START, Point.LAST, Point.LAST_LATE),
    "middle": (Point.START, Point.MIDDLE, Point.MIDDLE_LATE, Point.END),
    "first": (Point.FIRST_START, Point.FIRST, Point.FIRST_LATE, Point.FIRST_END),
    "tail": (Point.TAIL, Point.TAIL_END),
}


class Gathered(NamedTuple):
    """The most elements of gathered parameters.

    Attributes:
        whole: on a GPU.
        moving: those of them that are on their way alone, not coalesced with others: if parameters are on the host, the
            GPU has a copy of its own share of these until they have arrived (partition_parameters.py,
            _all_gather_sequential).
    """

    whole: int
    moving: int


@lru_cache(maxsize=2048)  # jobs of a table share models and buckets
def gathered_parameters(
    model: ModelCalls, buckets: BucketSizes, checkpointing: str, *, accumulating: bool
) -> dict[Point, Gathered]:
    """The most parameters that a GPU has gathered at each point of a micro-batch.

    Args:
        model: the modules.
        buckets: DeepSpeed's settings. Parameters with at most ``stage3_param_persistence_threshold`` elements always
            stay gathered, and are not counted.
        checkpointing: as in ``steps_of``.
        accumulating: whether an optimizer step takes several micro-batches.

    >>> from autoconf.jobs.stack import ZeroBuckets
    >>> from autoconf.memory.zero_calls import Layer, Module
    >>> layer = Layer((Module((16,)), Module((16,))), (Module((16,)), Module((16,))))
    >>> model, buckets = ModelCalls((64,), (layer,) * 3, (), (64,)), BucketSizes.of(ZeroBuckets(), 1)
    >>> gathered_parameters(model, buckets, "reentrant", accumulating=False)[Point.TURN]
    Gathered(whole=320, moving=0)
    """
    coordinator = Coordinator([*model.sizes()], micro_batch(model, checkpointing), buckets)
    if accumulating:
        # Its first complete trace decides what later ones release. The optimizer has not gathered anything then.
        coordinator.play(fresh=True)
    most = coordinator.play(fresh=False)
    return {point: most[part] for part, points in PARTS.items() for point in points}


@dataclass(slots=True)
class _Group:
    """Parameters that are gathered together, into one flat buffer, and copied out of it when they are needed."""

    parameters: Sequence[int]
    waiting: int
    elements: int
    copied: bool = False


class Coordinator:
    """PartitionedParameterCoordinator with a complete trace.

    Args:
        sizes: of the parameters.
        segments: of a micro-batch.
        buckets: DeepSpeed's settings.
    """

    def __init__(self, sizes: Sequence[int], segments: Sequence[Segment], buckets: BucketSizes) -> None:
        self.sizes, self.segments, self.buckets = sizes, segments, buckets
        self.persistent = [size <= buckets.stage3_param_persistence_threshold for size in sizes]
        called = [(segment.first, step.parameters) for segment in segments for step in segment.steps if not step.ends]
        self.queue = [first + number for first, numbers in called for number in numbers]  # of uses
        self._step_of = [step for step, (_, numbers) in enumerate(called) for _ in numbers]  # of a use
        used = (sum([sizes[first + number] for number in numbers]) if numbers else 0 for first, numbers in called)
        self._before = [0, *accumulate(used)]  # elements that are used before a step
        self._following = [-1] * len(self.queue)  # the next use of the parameter of a use
        latest = [-1] * len(sizes)
        for use in range(len(self.queue) - 1, -1, -1):
            self._following[use] = latest[self.queue[use]]
            latest[self.queue[use]] = use
        self._decided: list[bool] = []  # in the order of their questions, which is that of all micro-batches
        self._reset(fresh=False)

    def _reset(self, *, fresh: bool) -> None:
        """reset_step."""
        self.step = 0  # its __step_id: calls so far
        self.available = 0  # its __n_available_params
        self.held = 0  # elements, including flat buffers, without those that were persistent from the beginning on
        self.moving = 0  # elements of parameters in flight that are not in a group
        self.gathered = [False] * len(self.sizes) if fresh else self.persistent.copy()
        self.in_flight: set[int] = set()
        self.groups: dict[int, _Group] = {}  # by parameters in flight
        self.fetched_for = [-1] * len(self.sizes)  # its __most_recent_step_id_param_fetched_for
        self.position = 0  # of the queue
        self._decision = 0  # the next one
        self._used = 0  # uses so far
        self._latest = [-1] * len(self.sizes)  # its latest use

    def play(self, *, fresh: bool) -> dict[str, Gathered]:
        """A micro-batch; the most elements that were held, and moving, in each part of it.

        Args:
            fresh: whether parameters that always stay gathered are not gathered yet.
        """
        most, moving = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        for part, _, fetching, running, on_their_way in self.calls(fresh=fresh):
            begun = "forward" if part == "head" else part  # there are no logits yet
            if fetching > most[begun]:
                most[begun] = fetching
            if running > most[part]:
                most[part] = running
            if on_their_way > moving[part]:
                moving[part] = on_their_way
        return {part: Gathered(most[part], moving[part]) for part in PARTS}

    def calls(self, *, fresh: bool) -> Iterator[tuple[str, int, int, int, int]]:
        """Play the calls of a micro-batch; ``fresh`` as in ``play``.

        Yields:
            For each call its part, the elements that are gathered before it or on their way (__n_available_params), the
            most elements that are held until it has its parameters, and those that are held, and moving, after that.
        """
        self._reset(fresh=fresh)
        uses = len(self.queue)
        for part, first, steps in self.segments:
            for numbers, ends, releases in steps:
                if ends:
                    self._end(first, numbers, releases=releases)
                    continue
                available = self.available
                fetching = self._fetch(first, numbers) if numbers else self.held
                if self.position < uses:
                    self._prefetch()
                self.step += 1
                yield part, available, fetching, self.held, self.moving

    def _fetch(self, first: int, numbers: Sequence[int]) -> int:
        """Gather and wait for the parameters of a call; the most elements that are held meanwhile."""
        missing = [first + number for number in numbers if not self.gathered[first + number]]
        if missing:
            self._gather(missing)
        fetching = self.held
        for number in numbers:
            if first + number in self.in_flight or first + number in self.groups:
                fetching = max(fetching, self._wait(first + number))
        for number in numbers:
            if self.fetched_for[first + number] < self.step:  # it leaves the queue, in which a prefetch may be past it
                self.fetched_for[self.queue[self.position]] = self._step_of[self.position]
                self.position += 1
            self._latest[first + number] = self._used
            self._used += 1
        return fetching

    def _end(self, first: int, numbers: Sequence[int], *, releases: bool) -> None:
        """release_sub_module."""
        for parameter in numbers:
            parameter += first
            if self.persistent[parameter] or not (releases or self._may_go(parameter)):
                continue
            if self.gathered[parameter] and parameter not in self.in_flight:
                self.gathered[parameter] = False
                self.available -= self.sizes[parameter]
                self.held -= self.sizes[parameter]

    def _may_go(self, parameter: int) -> bool:
        """__params_to_release, which is computed once for each module and step: what it was in the first trace."""
        if self._decision == len(self._decided):
            self._decided.append(not self._stays(parameter))
        self._decision += 1
        return self._decided[self._decision - 1]

    def _stays(self, parameter: int) -> bool:
        if self.fetched_for[parameter] > self.step:
            return True
        following = self._following[self._latest[parameter]]
        if following < 0:
            return False
        between = self._before[self._step_of[following]] - self._before[self.step]
        return between < self.buckets.stage3_max_reuse_distance

    def _gather(self, parameters: Sequence[int]) -> None:
        """all_gather_coalesced of partition_parameters.py; a single parameter is a view of its buffer."""
        elements = sum(self.sizes[parameter] for parameter in parameters)
        for parameter in parameters:
            self.gathered[parameter] = True
            self.in_flight.add(parameter)
        self.available += elements
        self.held += elements
        if len(parameters) == 1:
            self.moving += elements
        else:
            self.groups |= dict.fromkeys(parameters, _Group(parameters, len(parameters), elements))

    def _wait(self, parameter: int) -> int:
        """AllGatherCoalescedHandle.wait: copies of all parameters; the buffer lives until all have been waited for."""
        self.in_flight.discard(parameter)
        group = self.groups.pop(parameter, None)
        if group is None:
            self.moving -= self.sizes[parameter]
            return self.held
        if not group.copied:
            group.copied = True
            self.held += group.elements
            self.in_flight.difference_update(group.parameters)
        most = self.held
        group.waiting -= 1
        if not group.waiting:
            self.held -= group.elements
        return most

    def _prefetch(self) -> None:
        most = min(self.buckets.stage3_max_live_parameters - self.available, self.buckets.stage3_prefetch_bucket_size)
        if most <= 0 or self.position == len(self.queue):
            return
        chosen: dict[int, None] = {}
        elements = 0
        while self.position < len(self.queue) and elements < most:
            parameter = self.queue[self.position]
            self.fetched_for[parameter] = self._step_of[self.position]
            self.position += 1
            if not self.gathered[parameter] and parameter not in chosen:
                chosen[parameter] = None
                elements += self.sizes[parameter]
        if chosen:
            self._gather(list(chosen))
