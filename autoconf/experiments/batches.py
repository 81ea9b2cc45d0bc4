"""Form the measurement requests of a sweep: their entities, their size, and replays of existing results."""

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

#: Start of the message of ado's executor supervisor if the Ray task of a request ended without results, such as for a
#: crashed worker. A failure of a single entity never has it. If ado rewords it, such a request stays invalid.
EXECUTOR_FAILURE = "Executor task raised:"


@dataclass(frozen=True)
class Batch:
    """Entities for one experiment under one request index.

    Args:
        index: The request index; all measurements of an entity share it, as ado's time series requires.
        reference: The experiment.
        entities: The entities, at least one.
        retries: How many times these measurements have been retried.
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
    """The number of requests that Ray runs at a time, so that none waits.

    A task releases its CPU while it delivers results. If a request is waiting then, Ray starts another worker process
    for it, and stops a worker after a second without work. Each of these processes would import ado and load a
    predictor for one or two requests. With twice as many requests, 20,000 points took 300 s instead of 165 s (measured
    with Ray 2.60 on two CPUs).

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
    """Yield all entities of a space in groups, in the order of its points.

    Args:
        entity_space: None means "all stored entities".
        stored: The entities of the sample store that are in the space. They have results and their own identifiers, so
            they take precedence over new entities.
        size: Entities per group, 1 or more; the last group may be smaller.
    """
    if entity_space is None:
        for start in range(0, len(stored), size):
            yield stored[start : start + size]
        return
    known: dict[Hashable, Entity] = {}
    for entity in stored:
        # As in ado, the first of several entities at one point is used.
        known.setdefault(point_of(entity), entity)
    generator = ExplicitEntitySpaceGridSampleGenerator(mode=WalkModeEnum.SEQUENTIAL)
    for group in generator.entitySpaceIterator(entity_space, batchsize=size):
        yield [known.get(point_of(entity), entity) for entity in group]


def point_of(entity: Entity) -> Hashable:
    """The key of an entity's point in a space; it does not depend on the entity's identifier."""
    return frozenset(
        (value.property.identifier, _hashable(value.value)) for value in entity.constitutive_property_values
    )


def _hashable(value: Any) -> Hashable:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def replays_of(batch: Batch, operation_identifier: str) -> list[ReplayedMeasurement]:
    """Make requests that replay the existing results of a batch's entities, like `ado...replay.replay`.

    A request has at most one result per entity, so an entity with n results appears in n requests.
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
    """The entities of a finished request with a valid result, and those without one."""
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
