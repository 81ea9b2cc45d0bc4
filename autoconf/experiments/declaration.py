"""How a question becomes an ado custom experiment: its properties, its signature, and arguments checked by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed
from autoconf.jobs.job import BATCHES, NAMES, NUMBERS, REQUIRED, TRAINING_STACK, Workload
from autoconf.jobs.presets import SETTINGS
from autoconf.jobs.queries import ARGUMENTS, Query
from autoconf.jobs.values import is_empty

from ado.modules.actuators.custom_experiments import custom_experiment
from ado.schema.domain import PropertyDomain, VariableTypeEnum
from ado.schema.property import ConstitutiveProperty

if TYPE_CHECKING:
    from autoconf.predictor.user_versions import ModelsFolder

_NAME = PropertyDomain(variableType=VariableTypeEnum.OPEN_CATEGORICAL_VARIABLE_TYPE)
# Open to every number: whether a job lies in a version's domain is that version's business, and a value that can never
# be right is refused by name in ``Job``, in a sentence that ado's domains cannot give.
_NUMBER = PropertyDomain(variableType=VariableTypeEnum.CONTINUOUS_VARIABLE_TYPE)

# In a space that asks only for text, numbers are welcome too: what a job may leave to its stack has "" for a default.
_OPEN = (*NAMES, "stack", *SETTINGS)

Outputs = dict[str, int | float | str]


def required_fields(question: Query) -> tuple[str, ...]:
    """The properties that an experiment requires, in order: in ado a job has one kind of batch, and names a version."""
    fields = [field for field in REQUIRED if field in question.required]
    return (*fields, *question.batches[:1], *question.arguments, "model_version")


def optional_fields(question: Query) -> dict[str, int | str]:
    """The properties that may be left out, with their defaults, in order."""
    fields = [field for field in question.fields if field not in (*required_fields(question), *BATCHES)]
    defaults = {field: question.optional[field] for field in fields}
    return {field: "" if default is None else default for field, default in defaults.items()}


def experiment(
    question: Query, description: str, outputs: Iterable[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Outputs]]:
    """Declare a function of a job, and of the question's numbers, as an ado custom experiment.

    Args:
        question: what the function answers.
        description: what it does, as ado shows it.
        outputs: the answer's fields that it gives; by default all of them. Those that are absent are left out.

    Returns:
        A decorator. The decorated function takes the fields of a job, and returns outputs by their names. Called from
        Python it also takes ``models``, a folder of versions of the user's own.
    """
    required, optional = required_fields(question), optional_fields(question)
    names = (*(outputs or question.answers), "notes")

    def declare(function: Callable[..., Any]) -> Callable[..., Outputs]:
        def answered(fields: dict[str, Any], models: ModelsFolder = None) -> Outputs:
            job, numbers = question.parse(fields)
            # In ado a property that is left out has the default that the experiment declares: nothing is left open.
            left_out = [field for field in optional if field not in job.model_fields_set]
            job = job.model_copy(update={field: question.optional[field] for field in left_out})
            return _outputs(function(job, **numbers, models=models), names)

        @wraps(function)
        def of_fields(**fields: Any) -> Outputs:
            return answered(fields)

        # ado reads the properties' defaults off the signature.
        of_fields.__signature__ = _signature(required, optional)  # type: ignore[attr-defined]
        declared = custom_experiment(
            required_properties=_properties(required),
            optional_properties=_properties(optional),
            output_property_identifiers=list(names),
            metadata={"description": f"{description} Answers hold for {TRAINING_STACK}."},
        )(of_fields)
        return _checked(question, declared, answered, required, (*required, *optional))

    return declare


def _checked(
    question: Query, declared: Callable[..., Any], answered: Callable[..., Outputs], required: tuple[str, ...],
    parameters: tuple[str, ...],
) -> Callable[..., Outputs]:  # fmt: skip
    """Check the arguments before ado does, so that a bad one is named, and pass them on as what they stand for."""

    @wraps(declared)  # carries ado's attributes along, which is how its actuator knows a custom experiment
    def checked(*values: Any, models: ModelsFolder = None, **fields: Any) -> Outputs:
        if len(values) > len(parameters):
            raise ValueError(f"{len(values)} values for the {len(parameters)} fields {', '.join(parameters)}")
        for field, value in zip(parameters, values, strict=False):
            if field in fields:
                raise ValueError(f"{field}: given twice")
            fields[field] = value
        for field in fields:
            if field not in parameters:
                raise ValueError(f"{field}: no such field; the fields are {', '.join(parameters)}")
        if missing := [f"{field}: is required" for field in required if is_empty(fields.get(field))]:
            raise ValueError("; ".join(missing))
        if models is not None:  # which is no property of a job, and nothing that ado could pass on
            return answered(fields, models)
        job, numbers = question.parse(fields)
        return declared(
            **{field: getattr(job, field) for field in parameters if field in job.model_fields_set}, **numbers
        )

    return checked


def _outputs(answer: Any, names: Iterable[str]) -> Outputs:
    values = {name: getattr(answer, name) for name in names}
    if "notes" in values:
        values["notes"] = "; ".join(values["notes"])
    return {name: value for name, value in values.items() if value not in (None, "")}


def _signature(required: Iterable[str], optional: dict[str, int | str]) -> Signature:
    def parameter(field: str, default: Any) -> Parameter:
        number = field in (*NUMBERS, *ARGUMENTS)
        annotation = str if not number else int | str if default == "" else int
        return Parameter(field, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)

    parameters = [*(parameter(f, Parameter.empty) for f in required), *(parameter(f, d) for f, d in optional.items())]
    return Signature(parameters, return_annotation=Outputs)


def _properties(fields: Iterable[str]) -> list[Any]:
    return [
        ConstitutiveProperty(
            identifier=field,
            propertyDomain=_NAME if field in _OPEN else _NUMBER,
            metadata={"description": ARGUMENTS.get(field) or Workload.model_fields[field].description},
        )
        for field in fields
    ]
