"""Kubernetes manifests of a training, Kubeflow's ``PyTorchJob`` and ``TrainJob``: what they say of the job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Said, settings
from autoconf.jobs.importers.shell import Launch, launch_of

KINDS = {"PyTorchJob": "kubeflow.org/v1", "TrainJob": "trainer.kubeflow.org/v1alpha1", "Job": "batch/v1"}
_PRODUCT = "nvidia.com/gpu.product"
_CONFIG_PATH = "SFT_TRAINER_CONFIG_JSON_PATH"  # fms-hf-tuning v3.1.0, tuning/utils/config_utils.py
_CONFIG_VARIABLE = "SFT_TRAINER_CONFIG_JSON_ENV_VAR"  # a pickle in base64


class Manifest(NamedTuple):
    """What a manifest says, and the training that it starts."""

    said: list[Said]
    launches: list[Launch]


def is_manifest(documents: Sequence[Any]) -> bool:
    """Whether YAML documents are Kubernetes objects."""
    return any(isinstance(document, Mapping) and {"apiVersion", "kind"} <= set(document) for document in documents)


def read_manifest(documents: Sequence[Any], file: str) -> Manifest:
    """Read the one training job among Kubernetes objects.

    Raises:
        BadInput: there is none, or more than one; or no container of it starts a training.

    >>> trainer = {"command": ["trl", "sft"], "args": ["--optim", "sgd"]}
    >>> job = {"apiVersion": KINDS["TrainJob"], "kind": "TrainJob", "spec": {"trainer": trainer}}
    >>> [thing.where for thing in read_manifest([job], "job.yaml").launches[0].said]
    ['job.yaml, spec.trainer.command: trl', 'job.yaml, spec.trainer.args: --optim']
    """
    objects = [document for document in documents if isinstance(document, Mapping)]
    jobs = [document for document in objects if str(document.get("kind")) in KINDS]
    if len(jobs) != 1:
        kinds = ", ".join(str(document.get("kind")) for document in objects)
        raise BadInput(f"{file}: must have one {', '.join(KINDS)}, has {kinds}")
    job = jobs[0]
    if job.get("apiVersion") != KINDS[job["kind"]]:
        raise BadInput(
            f"{file}, apiVersion: {job.get('apiVersion')!r}: of a {job['kind']} {KINDS[job['kind']]} is read"
        )
    said = list(_gpu_types(job, f"{file}, "))
    launches = []
    for path, container in containers(job):
        where = f"{file}, {path}"
        variables = _variables(container)
        if _CONFIG_VARIABLE in variables:
            raise BadInput(f"{where}.env: {_CONFIG_VARIABLE}: a pickled configuration is not read")
        if _CONFIG_PATH in variables:
            launches.append(_mounted(variables[_CONFIG_PATH], objects, f"{where}.env: {_CONFIG_PATH}"))
        elif launch := _started(container, where, variables):
            launches.append(launch)
    if not launches:
        raise BadInput(f"{file}, spec: no container has a command that starts a training")
    return Manifest(said, launches)


def containers(job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What runs the training, each with its path: containers of a ``PyTorchJob``, or the trainer of a ``TrainJob``."""
    spec = _mapping(job.get("spec"))
    if job.get("kind") == "TrainJob":
        yield "spec.trainer", _mapping(spec.get("trainer"))
        return
    roles = _mapping(spec.get("pytorchReplicaSpecs")).items()
    pods = [(f"spec.pytorchReplicaSpecs.{role}", replicas) for role, replicas in roles]
    for path, replicas in [("spec", spec)] if job.get("kind") == "Job" else pods:
        pod = _mapping(_mapping(_mapping(replicas).get("template")).get("spec"))
        for i, container in enumerate(_list(pod.get("containers"))):
            yield f"{path}.template.spec.containers[{i}]", _mapping(container)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    entries = [entry for entry in _list(container.get("env")) if isinstance(entry, Mapping) and "value" in entry]
    return {str(entry.get("name")): str(entry["value"]) for entry in entries}


def _started(container: Mapping[str, Any], where: str, variables: Mapping[str, str]) -> Launch | None:
    args = [str(word) for word in _list(container.get("args"))]
    command = [str(word) for word in _list(container.get("command"))]

    def place(option: str) -> str:
        inside = "args" if any(option in word for word in args) else "command"
        return f"{where}.{inside}: {option}" if option else f"{where}.{inside}"

    return launch_of([*command, *args], place, variables)


def _mounted(path: str, objects: Sequence[Mapping[str, Any]], where: str) -> Launch:
    """The configuration of fms-hf-tuning's image, out of a ``ConfigMap`` in the same file."""
    name = path.rpartition("/")[2]
    texts = [
        _mapping(o.get("data"))[name]
        for o in objects
        if o.get("kind") == "ConfigMap" and name in _mapping(o.get("data"))
    ]
    if len(texts) != 1:
        raise BadInput(f"{where}: {path!r}: {len(texts)} ConfigMaps in this file have a {name}; one is needed")
    try:
        config = json.loads(texts[0])
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: {path!r}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadInput(f"{where}: {path!r}: must be a JSON object")
    return Launch("fms-hf-tuning", list(settings(f"{where}, {name}: ", "arguments", config)))


def _gpu_types(value: Any, path: str) -> Iterator[Said]:
    """The types of GPU that node selectors and affinities anywhere in a manifest name."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _gpu_types(item, f"{path.removesuffix('.')}[{i}].")
    if not isinstance(value, Mapping):
        return
    if _PRODUCT in value:
        yield Said(f"{path}{_PRODUCT}", "kubernetes", _PRODUCT, value[_PRODUCT])
    if value.get("key") == _PRODUCT:
        names: Any = _list(value.get("values"))
        if value.get("operator") == "In" and len(names) == 1:
            names = names[0]
        yield Said(f"{path}{_PRODUCT}", "kubernetes", _PRODUCT, names)
    for name, item in value.items():
        yield from _gpu_types(item, f"{path}{name}.")
