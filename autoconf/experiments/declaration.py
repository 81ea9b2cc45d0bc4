"""Declare a query as an ado custom experiment, with its properties, its signature and checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed
from autoconf.experiments.domains import property_domain
from autoconf.jobs.job import (
    BATCHES,
    DROPOUT,
    GPU_MEMORY,
    IN_GIB,
    NUMBERS,
    REQUIRED,
    TRAINING_STACK,
    Workload,
    with_gpu,
)
from autoconf.jobs.queries import ALL_ARGUMENTS, Query
from autoconf.jobs.values import is_empty

from ado.modules.actuators.custom_experiments import custom_experiment
from ado.schema.property import ConstitutiveProperty

if TYPE_CHECKING:
    from autoconf.predictor.user_versions import ModelsFolder

Outputs = dict[str, int | float | str]


def required_fields(query: Query) -> tuple[str, ...]:
    """The required properties of an experiment, in order. In ado a job has one batch field and must name a version."""
    fields = [field for field in REQUIRED if field in query.required]
    return (*fields, *query.batches[:1], *query.arguments, "model_version")


def optional_fields(query: Query) -> dict[str, int | str]:
    """The properties that may be omitted, with their defaults, in order."""
    fields = [field for field in query.fields if field not in (*required_fields(query), *BATCHES)]
    defaults = {field: query.optional[field] for field in fields}
    return {field: "" if default is None else default for field, default in defaults.items()}


def experiment(
    query: Query, description: str, outputs: Iterable[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Outputs]]:
    """Declare a function of a job, and of the query's arguments, as an ado custom experiment.

    Args:
        query: the query that the function answers.
        description: the description that ado shows.
        outputs: the fields of the answer to output; by default those of the query. Absent values are omitted.

    Returns:
        A decorator. The decorated function takes the fields of a job, and returns outputs by their names. Called from
        Python it also takes ``models``, a folder of user versions.
    """
    required, optional = required_fields(query), optional_fields(query)
    names = (*(outputs or query.answers), "notes")

    def declare(function: Callable[..., Any]) -> Callable[..., Outputs]:
        @wraps(function)
        def of_fields(*values: Any, models: ModelsFolder = None, **fields: Any) -> Outputs:
            given = _arguments((*required, *optional), required, values, fields)
            job, numbers = query.parse(given)
            # In ado an omitted property has the default that the experiment declares, so set all of them.
            left_out = [field for field in optional if field in Workload.model_fields.keys() - job.model_fields_set]
            job = job.model_copy(update={field: query.optional[field] for field in left_out})
            return _outputs(function(job, **numbers, models=models), names)

        # ado reads the defaults of properties from the signature.
        of_fields.__signature__ = _signature(required, optional)  # type: ignore[attr-defined]
        declared = custom_experiment(
            required_properties=_properties(required),
            optional_properties=_properties(optional),
            output_property_identifiers=list(names),
            metadata={"description": f"{description} Answers hold for {TRAINING_STACK}."},
        )(of_fields)
        # ado validates an entity before it calls the function, so the validation in ado's wrapper is skipped here.
        # ado's actuator recognizes a custom experiment by these attributes.
        vars(of_fields).update({name: value for name, value in vars(declared).items() if name != "__wrapped__"})
        return of_fields

    return declare


def _arguments(
    parameters: tuple[str, ...], required: tuple[str, ...], values: tuple[Any, ...], fields: dict[str, Any]
) -> dict[str, Any]:
    """Match the arguments of a call to their names.

    Raises:
        ValueError: there are too many arguments, or one is given twice, unknown or missing; the message names it.
    """
    if len(values) > len(parameters):
        raise ValueError(f"{len(values)} values for the {len(parameters)} fields {', '.join(parameters)}")
    given = dict(zip(parameters, values, strict=False))
    for field in fields:
        if field in given:
            raise ValueError(f"{field}: given twice")
        if field not in parameters:
            raise ValueError(f"{field}: no such field; the fields are {', '.join(parameters)}")
    given |= fields
    if GPU_MEMORY in given:
        given = with_gpu(given)
    if missing := [f"{field}: is required" for field in required if is_empty(given.get(field))]:
        raise ValueError("; ".join(missing))
    return given


def _outputs(answer: Any, names: Iterable[str]) -> Outputs:
    values = {name: getattr(answer, name) for name in names}
    if "notes" in values:
        values["notes"] = "; ".join(values["notes"])
    return {name: value for name, value in values.items() if value not in (None, "")}


def _signature(required: Iterable[str], optional: dict[str, int | str]) -> Signature:
    def parameter(field: str, default: Any) -> Parameter:
        number = field in (*NUMBERS, *ALL_ARGUMENTS)
        annotation: Any = str if not number else int | str if default == "" else int
        if field in (*IN_GIB, DROPOUT):
            annotation = float | str
        return Parameter(field, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)

    parameters = [*(parameter(f, Parameter.empty) for f in required), *(parameter(f, d) for f, d in optional.items())]
    return Signature(parameters, return_annotation=Outputs)


def _properties(fields: Iterable[str]) -> list[Any]:
    return [
        ConstitutiveProperty(
            identifier=field,
            propertyDomain=property_domain(field),
            metadata={"description": ALL_ARGUMENTS.get(field) or Workload.model_fields[field].description},
        )
        for field in fields
    ]
