"""The parameters that a GPU has gathered under ZeRO-3: DeepSpeed's coordinator, played through once.

Source: DeepSpeed 0.19.8, runtime/zero/partitioned_param_coordinator.py. All sizes are numbers of elements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from autoconf.memory.profile import Point
from autoconf.memory.zero_calls import ModelCalls, Step, steps_of
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


@lru_cache(maxsize=2048)  # jobs of a table share models and buckets
def gathered_parameters(
    model: ModelCalls, buckets: BucketSizes, checkpointing: str, *, accumulating: bool
) -> dict[Point, int]:
    """The most parameters, in elements, that a GPU has gathered at each point of a micro-batch.

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
    320
    """
    sizes, steps = steps_of(model, checkpointing)
    coordinator = Coordinator(sizes, steps, buckets)
    if accumulating:
        # Its first complete trace decides what later ones release. The optimizer has not gathered anything then.
        coordinator.play(steps, fresh=True)
    most = coordinator.play(steps, fresh=False)
    return {point: most[part] for part, points in PARTS.items() for point in points}


@dataclass
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
        steps: of a micro-batch.
        buckets: DeepSpeed's settings.
    """

    def __init__(self, sizes: Sequence[int], steps: Sequence[Step], buckets: BucketSizes) -> None:
        self.sizes, self.buckets = sizes, buckets
        self.persistent = [size <= buckets.stage3_param_persistence_threshold for size in sizes]
        called = [step.parameters for step in steps if not step.ends]
        self.queue = [(parameter, step) for step, of_step in enumerate(called) for parameter in of_step]
        self._uses: list[list[int]] = [[] for _ in sizes]  # steps
        for parameter, at in self.queue:
            self._uses[parameter].append(at)
        # Elements that are used before each step.
        self._before = [0, *accumulate(sum(sizes[parameter] for parameter in of_step) for of_step in called)]
        self._decided: dict[tuple[int, int], bool] = {}
        self._reset(fresh=False)

    def _reset(self, *, fresh: bool) -> None:
        """reset_step."""
        self.step = 0  # its __step_id: calls so far
        self.available = 0  # its __n_available_params
        self.held = 0  # elements, including flat buffers, without those that were persistent from the beginning on
        self.gathered = [False] * len(self.sizes) if fresh else self.persistent.copy()
        self.in_flight: set[int] = set()
        self.groups: dict[int, _Group] = {}  # by parameters in flight
        self.fetched_for = [-1] * len(self.sizes)  # its __most_recent_step_id_param_fetched_for
        self.position = 0  # of the queue

    def play(self, steps: Sequence[Step], *, fresh: bool) -> dict[str, int]:
        """A micro-batch; the most elements that were held in each part of it.

        Args:
            steps: of the micro-batch.
            fresh: whether parameters that always stay gathered are not gathered yet.
        """
        self._reset(fresh=fresh)
        most = dict.fromkeys(PARTS, 0)
        for step in steps:
            if step.ends:
                self.end(step)
                continue
            fetching, running = self.call(step)
            begun = "forward" if step.part == "head" else step.part  # there are no logits yet
            most[begun] = max(most[begun], fetching)
            most[step.part] = max(most[step.part], running)
        return most

    def call(self, step: Step) -> tuple[int, int]:
        """Fetch for a call, and prefetch; the most elements that were held meanwhile, and what is held after it."""
        missing = [parameter for parameter in step.parameters if not self.gathered[parameter]]
        if missing:
            self._gather(missing)
        fetching = self.held
        for parameter in step.parameters:
            fetching = max(fetching, self._wait(parameter))
        for parameter in step.parameters:  # they leave the queue, in which a prefetch may have passed them
            if self.fetched_for[parameter] < self.step:
                following, used = self.queue[self.position]
                self.fetched_for[following] = used
                self.position += 1
        self._prefetch()
        self.step += 1
        return fetching, self.held

    def end(self, step: Step) -> None:
        """release_sub_module."""
        for parameter in step.parameters:
            released = not self.persistent[parameter] and (step.releases or self._may_go(parameter))
            if released and self.gathered[parameter] and parameter not in self.in_flight:
                self.gathered[parameter] = False
                self.available -= self.sizes[parameter]
                self.held -= self.sizes[parameter]

    def _may_go(self, parameter: int) -> bool:
        """__params_to_release, which is computed once for each module and step: what it was in the first trace."""
        key = parameter, self.step
        if key not in self._decided:
            self._decided[key] = not self._stays(parameter)
        return self._decided[key]

    def _stays(self, parameter: int) -> bool:
        if self.fetched_for[parameter] > self.step:
            return True
        uses = self._uses[parameter]
        following = bisect_left(uses, self.step)
        if following == len(uses):
            return False
        between = self._before[uses[following]] - self._before[self.step]
        return between < self.buckets.stage3_max_reuse_distance

    def _gather(self, parameters: Sequence[int]) -> None:
        """all_gather_coalesced of partition_parameters.py; a single parameter is a view of its buffer."""
        elements = sum(self.sizes[parameter] for parameter in parameters)
        for parameter in parameters:
            self.gathered[parameter] = True
            self.in_flight.add(parameter)
        self.available += elements
        self.held += elements
        if len(parameters) > 1:
            self.groups |= dict.fromkeys(parameters, _Group(parameters, len(parameters), elements))

    def _wait(self, parameter: int) -> int:
        """AllGatherCoalescedHandle.wait: copies of all parameters; the buffer lives until all have been waited for."""
        self.in_flight.discard(parameter)
        group = self.groups.pop(parameter, None)
        if group is None:
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
            parameter, used = self.queue[self.position]
            self.position += 1
            self.fetched_for[parameter] = max(self.fetched_for[parameter], used)
            if not self.gathered[parameter] and parameter not in chosen:
                chosen[parameter] = None
                elements += self.sizes[parameter]
        if chosen:
            self._gather(list(chosen))
