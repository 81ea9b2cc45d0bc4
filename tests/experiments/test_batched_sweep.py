"""The operator `batched_sweep`, with the real ado and a real Ray cluster of two one-CPU nodes on this machine."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from autoconf.experiments import largest_batch_recommender
from autoconf.experiments.batched_sweep import BatchedSweepParameters
from autoconf.experiments.batches import check_space_can_be_swept
from autoconf.jobs.queries import MIN_GPUS
from autoconf.min_gpu_recommender import min_gpu_recommender

from ado.core.operation.config import DiscoveryOperationResourceConfiguration
from ado.core.operation.resource import OperationExitStateEnum
from ado.core.samplestore.base import SampleStore
from ado.modules.operators.base import InterruptedOperationError
from ado.schema.entityspace import EntitySpaceRepresentation
from ado.schema.property import ConstitutiveProperty
from ado.schema.request import ReplayedMeasurement
from ado_context import AdoContext

EXAMPLES = Path(__file__).parents[2] / "sweep" / "examples"
FAILING_POINT = "x.2-y.3"


def space_of(*experiments: str, xs: int = 4, ys: int = 6) -> dict[str, Any]:
    """The configuration of a space with xs x ys points."""
    return {
        "entitySpace": [
            {"identifier": "x", "propertyDomain": {"values": list(range(1, xs + 1))}},
            {"identifier": "y", "propertyDomain": {"values": list(range(1, ys + 1))}},
        ],
        "experiments": [
            {"actuatorIdentifier": "custom_experiments", "experimentIdentifier": name, "experimentVersion": "1.0.0"}
            for name in experiments
        ],
    }


class Calls:
    """The log that the toy experiments keep: one (experiment, x, y, node) for each call."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen = 0

    def new(self) -> list[list[str]]:
        """The calls since the last time."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        news, self.seen = lines[self.seen :], len(lines)
        return [line.split(" ") for line in news]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    file = tmp_path_factory.mktemp("calls") / "calls.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_CALLS", str(file))
        # By default Ray would retry the task of a crashed worker three times, which takes seconds.
        patch.setenv("RAY_TASK_MAX_RETRIES", "0")
        yield Calls(file)


@pytest.fixture(scope="module", autouse=True)
def two_nodes(toy_experiment: None, calls: Calls) -> Iterator[list[str]]:
    """The identifiers of the nodes of a Ray cluster; this process is connected to it."""
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(address=cluster.address)
    yield [node["NodeID"] for node in ray.nodes()]
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """KeyboardInterrupt on SIGINT, which a shell lets its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> AdoContext:
    return AdoContext(tmp_path_factory.mktemp("ado"))


@pytest.fixture(scope="module")
def swept_space(context: AdoContext, calls: Calls) -> str:
    """A space with three experiments, one of which depends on another, that one sweep has measured."""
    space = context.create_space(space_of("multiply", "add", "double"))
    output = context.operate("batched_sweep", space, batchSize=4)
    assert output.exitStatus.exit_state == OperationExitStateEnum.SUCCESS
    return space


def validity(context: AdoContext, space: str, experiment: str) -> dict[str, list[bool]]:
    """For each entity, whether its measurements by an experiment are valid, in the order of measurement."""
    validities: dict[str, list[bool]] = {}
    for row in measurements(context, space).itertuples():
        if experiment in row.experiment_id:
            validities.setdefault(row.identifier, []).append(row.valid)
    return validities


def measurements(context: AdoContext, space: str) -> pd.DataFrame:
    """All measurements that the operations on a space requested."""
    discovery_space = context.space(space)
    return pd.concat(
        discovery_space.complete_measurement_request_with_results_timeseries(operation, "target")
        for operation in sorted(discovery_space.operations)
    )


@pytest.mark.slow
def test_sweep_gives_the_table_of_random_walk(context: AdoContext, swept_space: str) -> None:
    walked = context.create_space(space_of("multiply", "add", "double"))
    sampler = {"samplerType": "generator", "mode": "sequential"}
    context.operate("random_walk", walked, numberEntities="all", batchSize=4, samplerConfig=sampler)
    pd.testing.assert_frame_equal(context.table(swept_space), context.table(walked))
    assert len(context.table(swept_space)) == 23 + 24 + 23


FEW = {
    "space.yaml": {
        "model_name": ["llama-7b", "llama3.1-405b"], "tokens_per_sample": [512, 8192], "batch_size": [1, 8, 64],
        "gpu_model": ["L40S"], "method": ["full"], "model_version": ["1.1.0"],
    },
    "stacks.yaml": {"optim": ["paged_adamw_8bit"], "tokens_per_sample": [4096, 32768], "batch_size": [16]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "operation_file", "points"),
    [pytest.param("space.yaml", "operation.yaml", 12, marks=pytest.mark.slow),
     ("space.yaml", "operation-batched.yaml", 12), ("stacks.yaml", "operation-batched.yaml", 16)],
)  # fmt: skip
def test_the_examples_give_the_answers_of_direct_calls(
    context: AdoContext, file: str, operation_file: str, points: int
) -> None:
    space = yaml.safe_load((EXAMPLES / file).read_text())
    for dimension in space["entitySpace"]:
        values = dimension["propertyDomain"]["values"]
        dimension["propertyDomain"]["values"] = few = FEW[file].get(dimension["identifier"], values)
        assert set(few) <= set(values)
    identifier = context.create_space(space)
    configuration = yaml.safe_load((EXAMPLES / operation_file).read_text())
    operation = DiscoveryOperationResourceConfiguration.model_validate(configuration).operation.model_dump()
    context.operate(operation["module"]["operatorName"], identifier, **operation["parameters"])
    table = context.table(identifier)
    assert len(table) == points
    fields = [dimension["identifier"] for dimension in space["entitySpace"]]
    for row in table.to_dict("records"):
        measured = {name: row[name] for name in (*MIN_GPUS.answers, "notes") if not pd.isna(row.get(name))}
        assert measured == min_gpu_recommender(**{name: row[name] for name in fields})
    assert set(table["can_recommend"]) == {0, 1}


def test_sweep_uses_every_node(context: AdoContext, calls: Calls, two_nodes: list[str]) -> None:
    """Each call waits until both nodes are at work, so that no node can finish before the other has started."""
    space = context.create_space(space_of("add_together", xs=2, ys=4))
    calls.new()
    context.operate("batched_sweep", space, batchSize=4)
    assert {node for *_, node in calls.new()} == set(two_nodes)
    assert all(validities == [True] for validities in validity(context, space, "add_together").values())


def test_sweep_asks_for_many_entities_per_request(context: AdoContext, swept_space: str) -> None:
    space = context.space(swept_space)
    (operation,) = space.operations
    requests = space.measurement_requests_for_operation(operation)
    assert sorted(len(request.entities) for request in requests if "add" in str(request.experimentReference)) == [4] * 6


def test_failing_entity_is_invalid_and_its_neighbours_valid(context: AdoContext, swept_space: str) -> None:
    validities = validity(context, swept_space, "multiply")
    assert validities.pop(FAILING_POINT) == [False]
    assert list(validities.values()) == [[True]] * 23
    assert FAILING_POINT not in validity(context, swept_space, "double")


def test_second_sweep_measures_nothing_anew(context: AdoContext, swept_space: str, calls: Calls) -> None:
    before = context.table(swept_space)
    calls.new()
    first_operation = context.space(swept_space).operations
    context.operate("batched_sweep", swept_space, batchSize=4, maxRetries=1)
    # Like random_walk, the sweep does not reuse an invalid result; maxRetries=1 means two attempts.
    assert [call[:3] for call in calls.new()] == [["multiply", "2", "3"]] * 2
    pd.testing.assert_frame_equal(context.table(swept_space), before)
    space = context.space(swept_space)
    (operation,) = space.operations - first_operation
    replayed = [
        entity
        for request in space.measurement_requests_for_operation(operation)
        if isinstance(request, ReplayedMeasurement)
        for entity in request.entities
    ]
    assert len(replayed) == 23 + 24 + 23


def test_entity_that_kills_its_worker_costs_only_itself(context: AdoContext) -> None:
    space = context.create_space(space_of("crash", xs=2, ys=4))
    output = context.operate("batched_sweep", space, maxRequestsInFlight=1)
    assert output.exitStatus.exit_state == OperationExitStateEnum.SUCCESS
    last = {entity: validities[-1] for entity, validities in validity(context, space, "crash").items()}
    assert len(last) == 8
    assert [entity for entity, valid in last.items() if not valid] == [FAILING_POINT]


def test_interrupted_sweep_is_completed_by_the_next(context: AdoContext, calls: Calls, ctrl_c_raises: None) -> None:
    space = context.create_space(space_of("add_slowly", xs=10, ys=20))
    calls.new()
    store = context.space(space).sample_store
    threading.Thread(target=interrupt_when_under_way, args=(store,), daemon=True).start()
    with pytest.raises(InterruptedOperationError):
        context.operate("batched_sweep", space, batchSize=10)
    stored = validity(context, space, "add_slowly")
    assert 0 < len(stored) < 200
    assert all(validities == [True] for validities in stored.values())
    calls.new()

    context.operate("batched_sweep", space)
    assert len(calls.new()) == 200 - len(stored)
    entities = context.space(space).sampledEntities()
    assert Counter(len(entity.measurement_results) for entity in entities) == {1: 200}
    assert len(context.table(space)) == 200


def interrupt_when_under_way(store: SampleStore) -> None:
    """Interrupt this process like Ctrl-C, after results have reached an empty store."""
    give_up_at = time.monotonic() + 240  # a busy machine takes a minute to start the operation's actors
    while time.monotonic() < give_up_at:
        if store.numberOfEntities:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"batchSize": 0}, "batchSize"),
        ({"batchSize": 5001}, "batchSize"),
        ({"batchSize": "many"}, "batchSize"),
        ({"maxRequestsInFlight": 0}, "maxRequestsInFlight"),
        ({"maxRetries": -1}, "maxRetries"),
        ({"singleMeasurement": "perhaps"}, "singleMeasurement"),
        ({"batchsize": 10}, "batchsize"),
    ],
)
def test_bad_parameter_is_named(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=field):
        BatchedSweepParameters.model_validate(parameters)


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ({"variableType": "CONTINUOUS_VARIABLE_TYPE", "domainRange": [0, 1]}, "continuous"),
        ({"variableType": "DISCRETE_VARIABLE_TYPE", "interval": 1}, "unbounded"),
    ],
)
def test_space_without_a_finite_whole_is_refused(domain: dict[str, Any], reason: str) -> None:
    dimension = ConstitutiveProperty(identifier="temperature", propertyDomain=domain)
    with pytest.raises(ValueError, match=f"temperature.* {reason}"):
        check_space_can_be_swept(EntitySpaceRepresentation([dimension]))


def test_a_space_of_another_question_is_swept(context: AdoContext) -> None:
    """All experiments of the package are custom experiments of ado; this one outputs a batch."""
    job = {"model_name": ["llama-7b"], "method": ["lora", "full"], "gpu_model": ["L40S"], "tokens_per_sample": [8192],
           "number_gpus": [1, 2], "model_version": ["2.0.0"]}  # fmt: skip
    name = "largest_batch_recommender"
    space = context.create_space(
        {
            "entitySpace": [{"identifier": k, "propertyDomain": {"values": v}} for k, v in job.items()],
            "experiments": [{"actuatorIdentifier": "custom_experiments", "experimentIdentifier": name}],
        }
    )
    output = context.operate("batched_sweep", space)
    assert output.exitStatus.exit_state == OperationExitStateEnum.SUCCESS
    rows = measurements(context, space)
    assert rows["valid"].all() and len(rows) == 4
    for row in rows.to_dict("records"):
        expected = largest_batch_recommender(**{field: row[field] for field in job})
        assert {field: row[field] for field in expected} == expected
