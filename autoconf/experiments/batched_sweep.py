"""The ado explore operator `batched_sweep`, which measures a whole space with many entities per measurement request.

ado's `random_walk` sends one entity per request and looks each one up by scanning the sample store, so its rate falls
as the store grows. This operator reads the store once, then sends batches. ado itself records requests, results and
operation exactly as for `random_walk`; only the number of entities per request differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import pydantic
import ray

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed
from autoconf.experiments.batches import (
    Batch,
    batch_size_for,
    check_space_can_be_swept,
    died_as_a_whole,
    entities_of_space,
    replays_of,
    requests_in_flight_for,
    split_by_validity,
)

from ado.core.operation.config import DiscoveryOperationEnum, OperatorMetadata
from ado.modules.operators.base import Explore, measure_or_replay
from ado.modules.operators.collections import explore_operation
from ado.modules.operators.console_output import RichConsoleProgressMessage
from ado.schema.entity import Entity
from ado.schema.measurementspace import MeasurementSpace
from ado.schema.request import MeasurementRequest, ReplayedMeasurement
from ado.utilities.support import prepare_dependent_experiment_input

#: ado compares every result of a request with every entity of it, so the cost of a request grows with the square of its
#: size: 3 ms at 250 entities, 45 ms at 1,000, 1.8 s at 5,000, several times per request (measured on ado-core 2.3.0).
LARGEST_BATCH = 5_000

#: Seconds without a finished request after which the sweep checks that the actors that deliver requests are alive.
LIVENESS_CHECK_S = 30.0

#: Seconds that ado's store writer may take to stop; it checks every 5 s whether it should.
STORE_WRITER_STOPS_S = 8.0


class BatchedSweepParameters(pydantic.BaseModel):
    """The settings that a user may give under `operation.parameters`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    batchSize: Annotated[
        int,
        pydantic.Field(
            ge=1,
            le=LARGEST_BATCH,
            description="The largest number of entities in one measurement request. Requests are smaller if this is "
            "needed to keep maxRequestsInFlight of them running",
        ),
    ] = 250
    maxRequestsInFlight: Annotated[
        int | None,
        pydantic.Field(
            ge=1,
            description="The largest number of measurement requests that run or wait at the same time. Default: "
            "the number of CPUs of the Ray cluster, which is updated as nodes join. More requests would only wait; set "
            "a number if waiting requests should make an autoscaling cluster grow",
        ),
    ] = None
    singleMeasurement: Annotated[
        bool,
        pydantic.Field(description="If True, reuse existing measurements of an experiment"),
    ] = True
    maxRetries: Annotated[
        int,
        pydantic.Field(
            ge=0,
            description="The number of times to retry the failed measurements of a request",
        ),
    ] = 0


@explore_operation
class BatchedSweep(Explore):
    """Measures every point of a discovery space with every experiment of its measurement space.

    It supports several experiments, of any actuator, and dependent experiments, which start for the entities whose
    prerequisite was measured, as in `random_walk`. Entities that already have a result are replayed unless
    `singleMeasurement` is false. To complete an interrupted or partly measured space, run the operation again.

    Requests are Ray tasks that ado spreads over the cluster, except for experiments declared with `use_ray=False`:
    their actuator runs them one request after the other, as it does for `random_walk`.

    A crashed worker affects only the entity that crashed it: its request is recorded as failed, and its entities are
    sent again one by one. ado-core 1.x does not report crashed workers, so there the operation waits, as `random_walk`
    does.

    Spaces with a continuous or unbounded dimension are not supported, because they have infinitely many points.
    """

    def __init__(
        self,
        operationActorName: str,
        namespace: str | None,
        discovery_space_manager: Any,
        actuators: dict[str, Any],
        params: dict | None = None,
    ) -> None:
        """Create the operator; ado calls this inside a Ray actor.

        Args:
            operationActorName: The name under which ado started this actor.
            namespace: The operation's Ray namespace.
            discovery_space_manager: Handle of the actor that writes results to the sample store.
            actuators: Handles of the actuators, by identifier.
            params: See `BatchedSweepParameters`.

        Raises:
            pydantic.ValidationError: A parameter is unknown or out of range; the message names it.
        """
        self.params = BatchedSweepParameters.model_validate(params or {})
        self._identifier = f"{self.operator_metadata().operatorIdentifier}-{uuid.uuid4().hex[:6]}"
        self._updates: asyncio.Queue[MeasurementRequest | Exception | None] = asyncio.Queue()
        self._entities_taken = 0
        self._measurements_requested = 0
        self._measurements_finished = 0
        self._requests_in_flight = 0
        #: request id -> how often its measurements had been retried when it was sent
        self._retries: dict[str, int] = {}
        super().__init__(
            operationActorName=operationActorName,
            namespace=namespace,
            discovery_space_manager=discovery_space_manager,
            actuators=actuators,
        )

    @classmethod
    def description(cls) -> str:
        """The description of the operator that ado shows."""
        return (
            "Measures every point of a discovery space with many entities per measurement request. "
            "Gives the same table as a random_walk over all entities in a fraction of the time."
        )

    @classmethod
    def operator_metadata(cls) -> OperatorMetadata:
        """The operator's entry in ado's registry."""
        return OperatorMetadata(
            name="batched_sweep",
            version="1.0.0",
            description=cls.description(),
            configuration_model=BatchedSweepParameters,
            example_configuration=BatchedSweepParameters(),
            # ado 1.x calls this kind `search`, 2.x `explore`; the value "search" is accepted by both.
            type=DiscoveryOperationEnum("search"),
        )

    def operationIdentifier(self) -> str:
        """The identifier under which requests of this operation are recorded."""
        return self._identifier

    def numberEntitiesSampled(self) -> int:
        """How many entities of the space have been sent for measurement or replay so far."""
        return self._entities_taken

    def numberMeasurementsRequested(self) -> int:
        """How many measurements (one entity by one experiment) have been requested so far, including retries."""
        return self._measurements_requested

    def onUpdate(self, measurementRequest: MeasurementRequest) -> None:
        """Handle ado's message that the results of a request are in the store."""
        self._updates.put_nowait(measurementRequest)

    def onError(self, error: Exception) -> None:
        """Handle ado's message that results can no longer be stored."""
        self._updates.put_nowait(error)

    def onCompleted(self) -> None:
        """Handle ado's message that the operation is shut down and no more results will arrive."""
        self._updates.put_nowait(None)

    async def run(self) -> None:
        """Measure the space; return when every measurement is in the sample store.

        Raises:
            ValueError: The space has a continuous or unbounded dimension.
            RuntimeError: ado could not store results.
            MeasurementError: An experiment is deprecated or its actuator lacks configuration.
            ray.exceptions.RayActorError: An actuator died.
        """
        try:
            if await self._sweep():
                await self._finish_storing()
        finally:
            self.ds_manager.unsubscribeFromUpdates.remote(subscriberName=self.actorName)

    async def _finish_storing(self) -> None:
        """Stop ado's store writer, and wait for it.

        ado does the same at the end of the operation, but sleeps 10 s before it checks again.
        """
        self.ds_manager.shutdown.remote()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._updates.get(), STORE_WRITER_STOPS_S)

    async def _sweep(self) -> bool:
        """Send every batch and wait for the results; return False if ado shuts the operation down before the end."""
        measurement_space = await self.ds_manager.measurementSpace.remote()
        entity_space = await self.ds_manager.entitySpace.remote()
        self._measurement_queue = await self.ds_manager.measurement_queue.remote()
        check_space_can_be_swept(entity_space)
        stored = await self.ds_manager.matchingEntitiesInSource.remote()

        self._console = ray.get_actor("RichConsoleQueue")
        slots = self._slots()
        points = len(stored) if entity_space is None else entity_space.size
        size = batch_size_for(points, self.params.batchSize, slots)
        self._measurements_expected = points * len(measurement_space.experiments)
        print(
            f"Sweeping {points} entities with {len(measurement_space.experiments)} experiment(s): "
            f"up to {size} entities per request, up to {slots} requests at a time"
        )
        self._show_progress()

        fresh = self._batches(entities_of_space(entity_space, stored, size), measurement_space)
        # Follow-ups (dependent experiments, retries) go first, so that few are left at the end.
        follow_ups: deque[Batch] = deque()
        while True:
            while self._requests_in_flight < self._slots():
                batch = follow_ups.popleft() if follow_ups else next(fresh, None)
                if batch is None:
                    break
                await self._submit(batch)
            if not self._requests_in_flight:
                break
            request = await self._next_finished_request()
            if request is None:
                print("Sweep interrupted: ado is shutting the operation down")
                return False
            follow_ups.extend(self._follow_ups(request, measurement_space))
            self._show_progress()
        self._show_progress(complete=True)
        print(f"Sweep complete: {self._measurements_finished} measurements")
        return True

    def _slots(self) -> int:
        """How many requests may currently be in flight."""
        return self.params.maxRequestsInFlight or requests_in_flight_for(ray.cluster_resources().get("CPU", 1))

    def _batches(self, groups: Iterable[list[Entity]], measurement_space: MeasurementSpace) -> Iterator[Batch]:
        for index, entities in enumerate(groups):
            self._entities_taken += len(entities)
            for experiment in measurement_space.independentExperiments:
                yield Batch(index, experiment.reference, entities)

    async def _submit(self, batch: Batch) -> None:
        # In a thread, because it waits for an actuator and this actor must still receive messages from ado.
        request_ids = await asyncio.to_thread(self._replay_or_measure, batch)
        self._requests_in_flight += len(request_ids)
        self._measurements_requested += len(batch.entities)
        self._retries.update(dict.fromkeys(request_ids, batch.retries))

    def _replay_or_measure(self, batch: Batch) -> list[str]:
        """Do the same as `measure_or_replay`, but also replay many entities per request."""
        replays: list[ReplayedMeasurement] = []
        # A retry must measure: the entity may carry an older result, or have none.
        if self.params.singleMeasurement and not batch.retries:
            replays = replays_of(batch, self._identifier)
        for replay in replays:
            self._measurement_queue.put_nowait(replay)
        replayed = {entity.identifier for replay in replays for entity in replay.entities}
        remaining = [e for e in batch.entities if e.identifier not in replayed]
        request_ids = [replay.requestid for replay in replays]
        if remaining:
            request_ids += measure_or_replay(
                requestIndex=batch.index,
                requesterid=self._identifier,
                entities=remaining,
                experimentReference=batch.reference,
                actuators=self.actuators,
                measurement_queue=self._measurement_queue,
                memoize=False,
            )
        return request_ids

    async def _next_finished_request(self) -> MeasurementRequest | None:
        """Wait for a request of this operation to finish; return None if the operation is shut down."""
        while True:
            try:
                update = await asyncio.wait_for(self._updates.get(), LIVENESS_CHECK_S)
            except TimeoutError:
                await self._check_actors_live()
                continue
            if update is None:
                return None
            if isinstance(update, Exception):
                raise RuntimeError(f"ado could not store a measurement: {update}")
            if update.operation_id == self._identifier:
                self._requests_in_flight -= 1
                return update

    async def _check_actors_live(self) -> None:
        """Raise RayActorError if an actuator or the store writer died, because requests would never finish."""
        pings = [actuator.ready.remote() for actuator in self.actuators.values()]
        pings.append(self.ds_manager.stateIdentifier.remote())
        done, _busy = await asyncio.to_thread(ray.wait, pings, num_returns=len(pings), timeout=1.0)
        for ping in done:
            await ping

    def _follow_ups(self, request: MeasurementRequest, measurement_space: MeasurementSpace) -> list[Batch]:
        """The batches that follow from a finished request: retries, and dependent experiments."""
        valid, invalid = split_by_validity(request)
        batch = Batch(
            index=request.requestIndex,
            reference=request.experimentReference,
            entities=invalid,
            retries=self._retries.pop(request.requestid, 0),
        )
        again = self._retry(request, batch)
        self._measurements_finished += len(request.entities) - sum(len(b.entities) for b in again)
        if not valid or not measurement_space.dependentExperiments:
            return again
        dependents = prepare_dependent_experiment_input(
            measurement_request=request.model_copy(update={"entities": valid}),
            measurement_space=measurement_space,
        )
        return again + [Batch(d.requestIndex, d.experimentReference, d.entities) for d in dependents]

    def _retry(self, request: MeasurementRequest, failed: Batch) -> list[Batch]:
        """The batches that retry the failed entities, if any."""
        if died_as_a_whole(request):
            # One entity crashed the worker, so the results of the others are lost: send each entity alone to find out
            # which.
            return [replace(failed, entities=[entity]) for entity in failed.entities]
        if failed.entities and failed.retries < self.params.maxRetries:
            return [replace(failed, retries=failed.retries + 1)]
        return []

    def _show_progress(self, complete: bool = False) -> None:
        expected = max(self._measurements_expected, 1)
        # ado removes the bar at 100, so use 100 only at the end.
        percent = min(99, 100 * self._measurements_finished // expected)
        self._console.put.remote(
            RichConsoleProgressMessage(
                id=self._identifier,
                label=f"({self._identifier}) {self._measurements_finished}/{expected}",
                progress=100 if complete else percent,
            )
        )
