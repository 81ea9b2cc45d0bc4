"""What one measurement request of a sweep holds: its entities, how many, and which of them have results already."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed

from ado.core.discoveryspace.samplers import ExplicitEntitySpaceGridSampleGenerator, WalkModeEnum
from ado.schema.entity import Entity
from ado.schema.entityspace import EntitySpaceRepresentation
from ado.schema.reference import ExperimentReference
from ado.schema.request import MeasurementRequest, ReplayedMeasurement
from ado.schema.result import ValidMeasurementResult

#: How ado's executor supervisor words "the Ray task of this request ended without results" (a crashed worker, say).
#: A failure of a single entity never carries it. Should ado reword it, such a request is left recorded as invalid.
EXECUTOR_FAILURE = "Executor task raised:"


@dataclass(frozen=True)
class Batch:
    """Entities that one experiment is to measure under one request index.

    Args:
        index: The request index; all measurements of an entity share it, as ado's time series asks for.
        reference: The experiment.
        entities: At least one.
        retries: How many times these measurements have failed and been sent again.
    """

    index: int
    reference: ExperimentReference
    entities: list[Entity]
    retries: int = 0


def check_space_can_be_swept(entity_space: EntitySpaceRepresentation | None) -> None:
    """Check that a space has a finite number of points.

    Args:
        entity_space: None means "all entities of the sample store".

    Raises:
        ValueError: It has a continuous or unbounded dimension; the message names the dimensions of the space.
    """
    if entity_space is None:
        return
    names = [p.identifier for p in entity_space.constitutiveProperties]
    hint = "Give each dimension 'values' or an 'interval' and a 'domainRange', or use random_walk."
    if not entity_space.isDiscreteSpace:
        raise ValueError(f"batched_sweep measures every point, and a dimension among {names} is continuous. {hint}")
    try:
        _ = entity_space.size
    except AttributeError as error:
        raise ValueError(
            f"batched_sweep measures every point, and a dimension among {names} is unbounded. {hint}"
        ) from error


def requests_in_flight_for(cpus: float) -> int:
    """As many as Ray runs at a time, none to wait.

    A task that hands in its results lends its CPU out meanwhile. If a request waits, Ray starts one more worker for it,
    and ends one once it has idled for a second: processes that import ado and load a predictor for a request or two.
    With twice as many requests, 20,000 points took 300 s instead of 165 s (measured with Ray 2.60 on two CPUs).

    Args:
        cpus: CPUs of the Ray cluster, 0 or more.

    >>> requests_in_flight_for(2.0), requests_in_flight_for(0.5)
    (2, 1)
    """
    return max(1, int(cpus))


def batch_size_for(points: int, largest: int, slots: int) -> int:
    """The number of entities per request that fills all slots, if there are enough entities.

    Args:
        points: The number of entities, 0 or more.
        largest: The user's limit, 1 or more.
        slots: Requests in flight, 1 or more.

    >>> batch_size_for(3960, 250, 4), batch_size_for(100, 250, 4), batch_size_for(0, 250, 4)
    (250, 25, 1)
    """
    return max(1, min(largest, math.ceil(points / slots)))


def entities_of_space(
    entity_space: EntitySpaceRepresentation | None, stored: list[Entity], size: int
) -> Iterator[list[Entity]]:
    """All entities of a space in groups, in the order of its points.

    Args:
        entity_space: None means "all stored entities".
        stored: The entities of the sample store that lie in the space. They come with their results and their own
            identifiers, so they take precedence over newly made ones.
        size: Entities per group, 1 or more; the last group may be smaller.
    """
    if entity_space is None:
        for start in range(0, len(stored), size):
            yield stored[start : start + size]
        return
    known: dict[Hashable, Entity] = {}
    for entity in stored:
        # As in ado, the first of several entities at one point counts.
        known.setdefault(point_of(entity), entity)
    generator = ExplicitEntitySpaceGridSampleGenerator(mode=WalkModeEnum.SEQUENTIAL)
    for group in generator.entitySpaceIterator(entity_space, batchsize=size):
        yield [known.get(point_of(entity), entity) for entity in group]


def point_of(entity: Entity) -> Hashable:
    """The key of an entity's point of a space, whatever the entity's own identifier."""
    return frozenset(
        (value.property.identifier, _hashable(value.value)) for value in entity.constitutive_property_values
    )


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def replays_of(batch: Batch, operation_identifier: str) -> list[ReplayedMeasurement]:
    """Requests that reuse the results that a batch's entities already have, as `ado...replay.replay` makes them.

    A request holds one result per entity at most, so an entity with n results appears in n requests.
    """
    results = {
        entity.identifier: entity.measurement_results_for_experiment_reference(experiment_reference=batch.reference)
        for entity in batch.entities
    }
    rounds = itertools.zip_longest(*results.values())
    return [
        ReplayedMeasurement(
            operation_id=operation_identifier,
            requestIndex=batch.index,
            experimentReference=batch.reference,
            entities=[e for e, m in zip(batch.entities, measurements, strict=True) if m],
            measurements=tuple(m for m in measurements if m),
        )
        for measurements in rounds
    ]


def split_by_validity(
    request: MeasurementRequest,
) -> tuple[list[Entity], list[Entity]]:
    """The entities of a finished request that have a valid result, and those that have not."""
    measured = {
        result.entityIdentifier for result in request.measurements or () if isinstance(result, ValidMeasurementResult)
    }
    valid = [e for e in request.entities if e.identifier in measured]
    invalid = [e for e in request.entities if e.identifier not in measured]
    return valid, invalid


def died_as_a_whole(request: MeasurementRequest) -> bool:
    """Whether the Ray task of a request with several entities ended without results."""
    reasons = [getattr(result, "reason", "") for result in request.measurements or ()]
    return len(reasons) > 1 and all(r.startswith(EXECUTOR_FAILURE) for r in reasons)
