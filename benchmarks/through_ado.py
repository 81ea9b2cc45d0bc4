"""Figures of ado: whole spaces, single points, and a Ray cluster of two nodes."""

from __future__ import annotations

import io
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from commands import ROOT, MeasurementError, probe, run
from in_python import spread
from report import Limit, Row

if TYPE_CHECKING:
    import pandas as pd

    from ado_context import AdoContext

SMALL: dict[str, list[Any]] = {"model_name": ["llama-7b", "granite-8b-code-base"], "tokens_per_sample": [512, 8192]}
RECOMMENDER = "min_gpu_recommender"


def sweep(folder: Path, quick: bool) -> list[Row]:
    """Wall clock of `ado create operation -f sweep/examples/operation-batched.yaml` as a process, start and end
    included, on the sweep space; the baseline is the same with `operation.yaml` (random_walk). Both in new stores; that
    every point has a valid measurement is checked. Unlike rows are those of one exported table that the other lacks.
    """
    from contexts import BATCHED, POINT_BY_POINT, new_context
    from jobs import points, space_configuration

    space = space_configuration(RECOMMENDER, **(SMALL if quick else {}))
    contexts = {operation: new_context(folder / operation.stem) for operation in (BATCHED, POINT_BY_POINT)}
    seconds = {operation: operate(context, space, operation, timeout_s=2400) for operation, context in contexts.items()}
    tables = [context.table(*context.spaces()) for context in contexts.values()]
    return [
        Row(
            f"{len(points(space)):,} points through ado with batched_sweep",
            seconds[BATCHED],
            "s",
            baseline=seconds[POINT_BY_POINT],
            baseline_is="random_walk",
            limit=Limit(90.0, aim=45.0),
            full_size=not quick,
        ),
        Row(
            f"{len(points(space)):,} points: rows unlike those from random_walk",
            unlike(*tables),
            "",
            limit=Limit(0),
        ),
    ]


def long_sweep(folder: Path, quick: bool) -> list[Row]:
    """The same on 20,000 points, three times (once if quick), each in a new store; medians. The rates come from the
    times at which the store has the requests sent (one is sent when another's results are stored), over the first and
    the last quarter of the requests, without those at the beginning (a tenth, or as many as are sent at once) in which
    workers start. A ratio of 0.8 counts as "not slowed", because the machine's own speed varies within a run.
    """
    from contexts import BATCHED, new_context
    from jobs import dimensions_of_20000_points, points, space_configuration

    space = space_configuration(RECOMMENDER, **(SMALL if quick else dimensions_of_20000_points()))
    count = len(points(space))
    # A quick run has few points; smaller requests give its quarters something to count.
    settings = ["--set", "operation.parameters.batchSize=4"] if quick else []
    seconds, quarters = [], []
    for number in range(1 if quick else 3):
        context = new_context(folder / f"long{number}")
        seconds.append(operate(context, space, BATCHED, timeout_s=1800, settings=settings))
        quarters.append(rates(requests(context)))
    first, last = sorted(quarters, key=lambda pair: pair[1] / pair[0])[len(quarters) // 2]
    ratios = ", ".join(f"{after / before:.2f}" for before, after in quarters)
    return [
        Row(
            f"{count:,} points through ado with batched_sweep, median of {len(seconds)}",
            statistics.median(seconds),
            "s",
            note=spread(seconds),
            limit=Limit(360.0),
            full_size=not quick,
        ),
        Row(
            f"{count:,} points: rate in the last quarter",
            last,
            "points/s",
            baseline=first,
            baseline_is="in the first quarter",
            note=f"ratios: {ratios}",
            limit=Limit(0.8, on_ratio=True, at_least=True),
            full_size=not quick,
        ),
    ]


def one_point(folder: Path, quick: bool) -> list[Row]:
    """Wall clock of `run_experiment examples/simple.yaml` as a process, in turn with the same file for the constant
    function; medians. Most of it is Ray's start, which varies: see the spread.
    """
    example = ROOT / "examples" / "simple.yaml"
    point = yaml.safe_load(example.read_text(encoding="utf-8"))
    point["experiments"][0]["experimentIdentifier"] = "constant"
    constant_example = folder / "constant.yaml"
    constant_example.write_text(yaml.safe_dump(point), encoding="utf-8")
    ours, constant = [], []
    for _ in range(2 if quick else 7):
        ours.append(run_experiment(example, folder))
        constant.append(run_experiment(constant_example, folder))
    return [
        Row(
            f"run_experiment examples/simple.yaml, median of {len(ours)}",
            statistics.median(ours),
            "s",
            baseline=statistics.median(constant),
            baseline_is=f"constant function ({spread(constant)})",
            note=spread(ours),
            limit=Limit(1.1, on_ratio=True),
        )
    ]


def two_nodes(folder: Path, quick: bool) -> list[Row]:
    """`batched_sweep` on a local Ray cluster of two one-CPU nodes (`ray.cluster_utils.Cluster`): how many measurements
    the constant function, which can note where it runs, made on the less used node; and rows of the recommender's table
    that are not in the table made on a cluster of one node, or the reverse.
    """
    import pandas as pd

    dimensions = SMALL if quick else {}
    one, two = (
        probe("sweep_on_nodes", folder, 900, nodes=n, context_folder=str(folder / f"{n}-nodes"), dimensions=dimensions)
        for n in (1, 2)
    )
    tables = [pd.read_csv(io.StringIO(result["table"])) for result in (one, two)]
    points = sum(two["per_node"])
    if not points == sum(one["per_node"]) == len(tables[0]):
        raise MeasurementError(f"{points} measurements on two nodes, a table of {len(tables[0])} rows on one")
    return [
        Row(
            f"{points:,} points on two Ray nodes: measurements on the less used node",
            min(two["per_node"]) if len(two["per_node"]) == 2 else 0,
            "",
            baseline=points / 2,
            baseline_is="if evenly spread",
            note=" + ".join(f"{count:,}" for count in two["per_node"]),
            limit=Limit(1, at_least=True),
        ),
        Row(
            f"{points:,} points on two Ray nodes: rows unlike those from one node",
            unlike(*tables),
            "",
            limit=Limit(0),
        ),
    ]


def unlike(one: pd.DataFrame, other: pd.DataFrame) -> int:
    """How many rows one of two tables has and the other lacks; each table must be free of repeated rows."""
    import pandas as pd

    for table in (one, other):
        if table.empty or table.duplicated().any():
            raise MeasurementError("a table is empty or repeats a row, which would hide differences")
    return len(pd.concat([one, other]).drop_duplicates(keep=False))


def run_experiment(file: Path, folder: Path) -> float:
    """Seconds that `run_experiment` takes for a file."""
    command = [str(Path(sys.executable).with_name("run_experiment")), str(file)]
    finished = run(command, folder, timeout_s=180)
    if "can_recommend" not in finished.output:
        raise MeasurementError(f"run_experiment {file.name} printed no result")
    return finished.wall_s


def operate(
    context: AdoContext, space: dict[str, Any], operation: Path, timeout_s: float, settings: Sequence[str] = ()
) -> float:
    """Make a space and measure all of it by `ado create operation`.

    Args:
        context: a new one.
        space: what the space's YAML holds.
        operation: the operation's YAML.
        timeout_s: seconds after which the operation is given up.
        settings: further arguments of the command.

    Returns:
        Seconds that the operation's process ran.

    Raises:
        MeasurementError: a point has no valid measurement.
    """
    from jobs import points

    file = context.folder / "space.yaml"
    file.write_text(yaml.safe_dump(space), encoding="utf-8")
    run(context.command("create", "space", "-f", str(file), "--new-sample-store"), context.folder, 180)
    command = context.command("create", "operation", "-f", str(operation), "--use-latest", "space", *settings)
    seconds = run(command, context.folder, timeout_s).wall_s
    (identifier,) = context.spaces()
    stored = context.space(identifier)
    (performed,) = stored.operations
    valid = stored.operation_entity_statistics(performed)["entities_with_all_successful_measurements"]
    if valid != len(points(space)):
        raise MeasurementError(f"{valid} of {len(points(space))} points have a valid measurement")
    return seconds


def requests(context: AdoContext) -> list[tuple[datetime, int]]:
    """When each measurement request of a context's only operation was sent, and its number of entities."""
    (identifier,) = context.spaces()
    stored = context.space(identifier)
    (operation,) = stored.operations
    sent = stored.measurement_requests_for_operation(operation)
    return sorted((request.timestamp, len(request.entities)) for request in sent)


def rates(sent: Sequence[tuple[datetime, int]]) -> tuple[float, float]:
    """Entities per second in the first and the last quarter of requests, after those in which workers start.

    Args:
        sent: time and number of entities of each request, in the order of time.

    Raises:
        MeasurementError: there are too few requests.
    """
    from autoconf.operators.batched_sweep import requests_in_flight_for

    sent_at_once = requests_in_flight_for(psutil.cpu_count() or 1)
    steady = sent[max(sent_at_once, len(sent) // 10) :]
    length = len(steady) // 4
    if length < 2:
        raise MeasurementError(f"{len(sent)} requests are too few to tell a rate")
    return rate(steady[:length]), rate(steady[-length:])


def rate(sent: Sequence[tuple[datetime, int]]) -> float:
    """Entities per second between the first request and the last."""
    return sum(count for _, count in sent[1:]) / (sent[-1][0] - sent[0][0]).total_seconds()
