"""Answer one job through ado's API: the custom_experiments actuator measures it on Ray, as in an operation."""

from ado.modules.actuators.registry import ActuatorRegistry
from ado.schema.point import SpacePoint
from ado.schema.reference import ExperimentReference
from ado.utilities.run_experiment import local_execution_closure

JOB = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
    "model_version": "1.1.0",
}

if __name__ == "__main__":
    registry = ActuatorRegistry()
    experiment = registry.experimentForReference(
        ExperimentReference(actuatorIdentifier="custom_experiments", experimentIdentifier="min_gpu_recommender")
    )
    entity = SpacePoint.model_validate({"entity": JOB}).to_entity()
    request = local_execution_closure(registry=registry)(reference=experiment.reference, entity=entity)
    print(request.measurements[0].series_representation(output_format="target"))
