"""The baseline: an ado experiment with the recommender's inputs and outputs whose answer is a constant.

What it costs is ado's own cost. This folder on PYTHONPATH is enough for ado to find it. Every call appends one line,
the Ray node that it ran on, to the file named by CONSTANT_CALLS, if that is set.
"""

import os

from ado.modules.actuators.custom_experiments import custom_experiment
from ado.schema.domain import PropertyDomain, VariableTypeEnum
from ado.schema.property import ConstitutiveProperty

NAME = PropertyDomain(variableType=VariableTypeEnum.OPEN_CATEGORICAL_VARIABLE_TYPE)
NUMBER = PropertyDomain(variableType=VariableTypeEnum.CONTINUOUS_VARIABLE_TYPE)
PROPERTIES = [
    ConstitutiveProperty(identifier=identifier, propertyDomain=domain)
    for identifier, domain in {
        "model_name": NAME,
        "method": NAME,
        "gpu_model": NAME,
        "tokens_per_sample": NUMBER,
        "batch_size": NUMBER,
        "model_version": NAME,
    }.items()
]


@custom_experiment(required_properties=PROPERTIES, output_property_identifiers=["can_recommend", "gpus", "workers"])
def constant(
    model_name: str, method: str, gpu_model: str, tokens_per_sample: int, batch_size: int, model_version: str
) -> dict[str, int]:
    """One GPU of one worker, whatever the job."""
    if path := os.environ.get("CONSTANT_CALLS"):
        note_node(path)
    return {"can_recommend": 1, "gpus": 1, "workers": 1}


def note_node(path: str) -> None:
    import ray

    with open(path, "a") as calls:
        calls.write(f"{ray.get_runtime_context().get_node_id()}\n")
