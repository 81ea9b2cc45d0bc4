"""What ado's console shows of a sweep, at a price that does not grow with the sweep.

ado's console shows the newest rows of a table that it makes anew at each refresh, from every result of the operation in
the sample store: 1.3 ms of CPU per result (ado-core 2.3.0), so that with some thousand results it takes a CPU of its
own, and 25 s at the end of 20,000. The operator has the newest results at hand. Here the console asks it.
"""

from __future__ import annotations

import copy
import uuid
from collections import deque
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import ray

import autoconf.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed

from ado.core.discoveryspace.space import DiscoverySpace
from ado.core.operation.config import FunctionOperationInfo
from ado.core.operation.operation import OperationOutput
from ado.schema.request import MeasurementRequest
from ado.utilities.pandas import reorder_dataframe_columns

if TYPE_CHECKING:
    import pandas as pd

#: Newest rows that are kept: more than the console, which takes less than half of a screen, has room for.
ROWS = 100

# The order of columns in ado's time series.
_FIRST = ["request_index", "result_index", "identifier", "experiment_id"]
_LAST = ["request_id", "entity_index", "valid"]


class NewestMeasurements:
    """The last measurements of an operation, and how many there were in all."""

    def __init__(self) -> None:
        self.count = 0
        self._requests: deque[MeasurementRequest] = deque()

    def add(self, request: MeasurementRequest) -> None:
        """Take note of a finished request; forget those that have no row among the last ones any more."""
        if not request.measurements:
            return
        self.count += len(request.measurements)
        self._requests.append(request)
        while sum(len(r.measurements) for r in self._requests) - len(self._requests[0].measurements) >= ROWS:
            self._requests.popleft()

    def table(self) -> pd.DataFrame:
        """The last ``ROWS`` measurements, the newest at the end, with the columns of ado's time series."""
        import pandas as pd

        rows = [row for request in self._requests for row in _last_rows(request)][-ROWS:]
        columns = pd.DataFrame(rows).columns
        rows = [row.reindex(columns, fill_value="not_measured") for row in rows]
        return reorder_dataframe_columns(pd.DataFrame(rows), _FIRST, _LAST).reset_index(drop=True)


def _last_rows(request: MeasurementRequest) -> list[pd.Series]:
    """The last ``ROWS`` rows of a request in ado's time series."""
    measurements = request.measurements[-ROWS:]
    names = {measurement.entityIdentifier for measurement in measurements}
    entities = [entity for entity in request.entities if entity.identifier in names]
    shortened = request.model_copy(update={"entities": entities, "measurements": measurements})
    rows = shortened.series_representation("target")
    for row in rows:
        row["entity_index"] += len(request.measurements) - len(measurements)
    return rows


class SpaceForConsole(DiscoverySpace):
    """The space of one running operation, whose time series holds the newest rows and, before them, blank ones."""

    operator: tuple[str, str]  # name and Ray namespace of the operator's actor

    def complete_measurement_request_with_results_timeseries(
        self, operation_id: str, output_format: Literal["observed", "target"], *args: Any, **kwargs: Any
    ) -> pd.DataFrame:
        """What the console asks for at each refresh; all of it, from the store, once there is no operator to ask."""
        try:
            operator: Any = ray.get_actor(*self.operator)
            count, newest = ray.get(operator.newest_measurements.remote())
        except (ValueError, ray.exceptions.RayActorError):
            return super().complete_measurement_request_with_results_timeseries(
                operation_id, output_format, *args, **kwargs
            )
        return blank_rows_before(newest, count).set_index("request_index")


def blank_rows_before(newest: pd.DataFrame, count: int) -> pd.DataFrame:
    """The last rows of a table at their places in one of ``count`` rows, since ado's console numbers them.

    >>> import pandas as pd
    >>> blank_rows_before(pd.DataFrame({"gpus": [1, 2]}), 4)["gpus"].tolist()
    ['', '', 1, 2]
    """
    placed = newest.astype(object).set_index(newest.index + count - len(newest))
    return placed.reindex(range(count), fill_value="")


def register_with_console(name: str) -> None:
    """Run a registered explore operator, one that has a method ``newest_measurements``, with this console."""
    # Loads all operators, batched_sweep among them, which imports this module.
    from ado.modules.operators.collections import explore

    registered = explore.operators[name]
    operate = registered.function

    @wraps(operate)
    def with_console(
        discoverySpace: DiscoverySpace, operationInfo: FunctionOperationInfo | None = None, **kwargs: object
    ) -> OperationOutput:
        info = operationInfo or FunctionOperationInfo()
        namespace = info.ray_namespace or f"{name}-namespace-{uuid.uuid4().hex[:8]}"
        space = copy.copy(discoverySpace)
        space.__class__ = SpaceForConsole
        space.operator = (name, namespace)
        return operate(space, operationInfo=info.model_copy(update={"ray_namespace": namespace}), **kwargs)

    explore.operators[name] = registered.model_copy(update={"function": with_console})
