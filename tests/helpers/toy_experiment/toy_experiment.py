"""Small ado experiments for tests; this folder on PYTHONPATH is enough for ado to find them.

Every call appends one line "<experiment> <x> <y> <Ray node>" to the file named by TOY_CALLS, if that is set.
"""

import os
import time
from typing import Any

import ray

from ado.modules.actuators.custom_experiments import custom_experiment, get_custom_experiments_catalog
from ado.schema.domain import PropertyDomain, VariableTypeEnum
from ado.schema.entity import Entity
from ado.schema.experiment import Experiment
from ado.schema.observed_property import ObservedPropertyValue
from ado.schema.property import AbstractPropertyDescriptor, ConstitutiveProperty


def whole_number(identifier: str) -> ConstitutiveProperty:
    domain = PropertyDomain(
        variableType=VariableTypeEnum.DISCRETE_VARIABLE_TYPE, interval=1, domainRange=[0, 1_000_000]
    )
    return ConstitutiveProperty(identifier=identifier, propertyDomain=domain)


X, Y = whole_number("x"), whole_number("y")


def note_call(experiment: str, x: Any, y: Any = "") -> None:
    if path := os.environ.get("TOY_CALLS"):
        line = f"{experiment} {x} {y} {ray.get_runtime_context().get_node_id()}\n"
        with open(path, "a") as calls:
            calls.write(line)


def nodes_of(experiment: str) -> set[str]:
    """The nodes that have called an experiment, from the log."""
    with open(os.environ["TOY_CALLS"]) as calls:
        return {line.split()[-1] for line in calls if line.startswith(f"{experiment} ")}


@custom_experiment(required_properties=[X, Y], output_property_identifiers=["product"], version="1.0.0")
def multiply(x, y):
    """x * y; raises at (2, 3)."""
    note_call("multiply", x, y)
    if (x, y) == (2, 3):
        raise ValueError("the toy fails at (2, 3)")
    return {"product": x * y}


def double(entity: Entity, experiment: Experiment) -> list[ObservedPropertyValue]:
    """Twice the result of `multiply`: a dependent experiment, which ado's decorator cannot declare."""
    product = entity.valueForProperty(PRODUCT).value
    note_call("double", product)
    (doubled,) = experiment.observedProperties
    return [ObservedPropertyValue(property=doubled, value=2 * product)]


PRODUCT = multiply._experiment.observedPropertyForTargetIdentifier("product")
get_custom_experiments_catalog().addExperiment(
    Experiment(
        actuatorIdentifier="custom_experiments",
        identifier="double",
        version="1.0.0",
        requiredProperties=(PRODUCT,),
        targetProperties=[AbstractPropertyDescriptor(identifier="doubled")],
        metadata={
            "module": {"moduleType": "experiment", "moduleName": "toy_experiment", "moduleFunction": "double"},
        },
    )
)


@custom_experiment(required_properties=[X, Y], output_property_identifiers=["total"], version="1.0.0")
def add(x, y):
    """x + y."""
    note_call("add", x, y)
    return {"total": x + y}


@custom_experiment(required_properties=[X, Y], output_property_identifiers=["total"], version="1.0.0")
def add_slowly(x, y):
    """x + y, a twentieth of a second later."""
    note_call("add_slowly", x, y)
    time.sleep(0.05)
    return {"total": x + y}


@custom_experiment(required_properties=[X, Y], output_property_identifiers=["total"], version="1.0.0")
def add_together(x, y):
    """x + y, as soon as a second node is at work, too; raises after two minutes alone."""
    note_call("add_together", x, y)
    give_up_at = time.monotonic() + 120
    while len(nodes_of("add_together")) < 2:
        if time.monotonic() > give_up_at:
            raise TimeoutError("no second node was at work")
        time.sleep(0.05)
    return {"total": x + y}


@custom_experiment(required_properties=[X, Y], output_property_identifiers=["total"], version="1.0.0")
def crash(x, y):
    """x + y; kills its process at (2, 3)."""
    note_call("crash", x, y)
    if (x, y) == (2, 3):
        os._exit(1)
    return {"total": x + y}
