"""The pods of Kubernetes jobs that may train: the paths of their counts, containers and GPUs in a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from autoconf.jobs.importers.documents import Path

KINDS = {
    "PyTorchJob": "kubeflow.org/v1",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
    "Job": "batch/v1",
    "RayJob": "ray.io/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
}
RUNTIMES = {kind: "trainer.kubeflow.org/v1alpha1" for kind in ("TrainingRuntime", "ClusterTrainingRuntime")}
GPU = "nvidia.com/gpu"
_OF_RAY = ("spec", "rayClusterSpec")


class Pods(NamedTuple):
    """Pods of one template.

    Attributes:
        counts: The paths of numbers whose product is the number of pods; a missing one is 1.
        template: The path of the pod's spec, or of the trainer of a ``TrainJob``.
        others: Pods of each unit that another template makes.
    """

    counts: tuple[Path, ...]
    template: Path
    others: int = 0


def pods_of(job: Mapping[str, Any]) -> list[Pods]:
    """The pods of a job.

    >>> pods_of({"kind": "Job", "spec": {}})
    [Pods(counts=(('spec', 'parallelism'),), template=('spec', 'template', 'spec'), others=0)]
    """
    match job.get("kind"):
        case "TrainJob":
            return [Pods((("spec", "trainer", "numNodes"),), ("spec", "trainer"))]
        case "PyTorchJob":
            roles = ("spec", "pytorchReplicaSpecs")
            return [
                Pods(((*roles, role, "replicas"),), (*roles, role, "template", "spec"))
                for role in mapping(at(job, roles))
            ]
        case "Job":
            return [Pods((("spec", "parallelism"),), ("spec", "template", "spec"))]
        case "JobSet":
            return [_of_replicated_job(("spec", "replicatedJobs", i)) for i in _indices(job, "spec", "replicatedJobs")]
        case "TrainingRuntime" | "ClusterTrainingRuntime":
            path = ("spec", "template", "spec", "replicatedJobs")
            return [_of_replicated_job((*path, i)) for i in _indices(job, *path)]
        case "RayJob":
            groups = (*_OF_RAY, "workerGroupSpecs")
            workers = [(*groups, i) for i in _indices(job, *groups)]
            head = Pods((), (*_OF_RAY, "headGroupSpec", "template", "spec"))
            return [head, *(Pods(((*path, "replicas"),), (*path, "template", "spec")) for path in workers)]
        case "LeaderWorkerSet":
            return _of_leader_and_workers(job)
    return []


def _of_replicated_job(path: Path) -> Pods:
    inner = (*path, "template", "spec")
    return Pods(((*path, "replicas"), (*inner, "parallelism")), (*inner, "template", "spec"))


def _of_leader_and_workers(job: Mapping[str, Any]) -> list[Pods]:
    both = ("spec", "leaderWorkerTemplate")
    groups, size = ("spec", "replicas"), (*both, "size")
    workers = (*both, "workerTemplate", "spec")
    if at(job, (*both, "leaderTemplate")) is None:
        return [Pods((groups, size), workers)]
    return [Pods((groups,), (*both, "leaderTemplate", "spec")), Pods((groups, size), workers, others=1)]


def kind_of(value: Any) -> str:
    """The kind of a Kubernetes object; empty text for any other value."""
    kind = mapping(value).get("kind")
    return kind if isinstance(kind, str) else ""


def containers_of(job: Mapping[str, Any]) -> list[Path]:
    """The paths of the containers of a job's pods; the trainer of a ``TrainJob`` is one.

    >>> containers_of({"kind": "Job", "spec": {"template": {"spec": {"containers": [{}]}}}})
    [('spec', 'template', 'spec', 'containers', 0)]
    """
    if job.get("kind") == "TrainJob":
        return [("spec", "trainer")]
    templates = [(*pods.template, "containers") for pods in pods_of(job)]
    return [(*path, i) for path in templates for i in _indices(job, *path)]


def resources_of(container: Path) -> Path:
    """The path of the resources of a container."""
    return (*container, "resourcesPerNode" if container[-1] == "trainer" else "resources")


def at(value: Any, path: Path) -> Any:
    """The value at a path; ``None`` if there is none."""
    for name in path:
        if isinstance(name, int):
            value = value[name] if isinstance(value, list) and name < len(value) else None
        else:
            value = mapping(value).get(name)
    return value


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or an empty one for any other value."""
    return value if isinstance(value, Mapping) else {}


def _indices(job: Mapping[str, Any], *path: str | int) -> range:
    found = at(job, path)
    return range(len(found) if isinstance(found, list) else 0)
