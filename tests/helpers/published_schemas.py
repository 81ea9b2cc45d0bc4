"""Manifests held against the published schemas of their kinds.

Two clients that the Kubeflow project generates from its published schemas are used: ``kubeflow-trainer-api`` has
TrainJob, JobSet and the kinds of Kubernetes that they contain, and ``kubeflow-training`` has PyTorchJob. The client of
Kubernetes, which the latter needs, has Deployment, Service and MutatingWebhookConfiguration. Other kinds have their
pods checked. With the environment variable ``AUTOCONF_CRDS``, a folder of CustomResourceDefinitions
(``kubectl get crd -o yaml``, or the files of a release), a manifest is also validated against the schema that an API
server would use, in which no other field may occur.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

CLIENTS = bool(find_spec("kubeflow_trainer_api") and find_spec("kubeflow") and find_spec("kubeflow.training"))
FOLDER = os.environ.get("AUTOCONF_CRDS")
_MODELS = {"TrainJob": "TrainerV1alpha1TrainJob", "JobSet": "JobsetV1alpha2JobSet", "Job": "IoK8sApiBatchV1Job"}
_GENERATED = {
    "PyTorchJob": "KubeflowOrgV1PyTorchJob", "Deployment": "V1Deployment", "Service": "V1Service",
    "MutatingWebhookConfiguration": "V1MutatingWebhookConfiguration",
}  # fmt: skip
_FILLED_IN = ("run_policy",)  # required for the client alone, which writes an empty one; not by the definition
_PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str, "object": object,
          "quantity": (str, int, float)}  # fmt: skip
_QUANTITIES = ("limits", "requests")  # text for the client; the API also takes numbers


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the published schemas say against a manifest; a known field of a wrong type, or an unknown field."""
    return [*(_by_clients(manifest) if CLIENTS else []), *(_by_definition(manifest) if FOLDER else [])]


def _by_clients(manifest: dict[str, Any]) -> Iterator[str]:
    from kubeflow_trainer_api import models

    if name := _MODELS.get(manifest["kind"]):
        yield from _lost(getattr(models, name), manifest)
    if name := _GENERATED.get(manifest["kind"]):
        yield from _wrong(name, manifest, "")
    for pod in _pods(manifest):
        yield from _lost(models.IoK8sApiCoreV1PodTemplateSpec, pod)


def _lost(model: Any, manifest: dict[str, Any]) -> Iterator[str]:
    """What a model of the client refuses, and the fields that it drops because it does not know them."""
    try:
        kept = model.from_dict(manifest).to_dict()
    except ValueError as error:
        yield str(error)
        return
    yield from _missing(manifest, kept, "")


def _missing(given: Any, kept: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{path}/{key}: no such field"
            else:
                yield from _missing(value, kept[key], f"{path}/{key}")
    elif isinstance(given, list) and isinstance(kept, list):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from _missing(*pair, f"{path}/{index}")


def _wrong(kind: str, value: Any, path: str) -> Iterator[str]:
    """What a type of a client says against a value.

    The classes of ``kubeflow-training`` and ``kubernetes`` say of each attribute its key and its type, such as
    ``list[V1Container]`` or ``dict(str, KubeflowOrgV1ReplicaSpec)``, and their constructors check what is required.
    """
    if found := re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind):
        of_list, of_dict = found.groups()
        if not isinstance(value, list if of_list else dict):
            yield f"{path}: must be {kind}"
            return
        for key, inner in enumerate(value) if of_list else value.items():
            yield from _wrong(of_list or of_dict, inner, f"{path}/{key}")
    elif kind in _PLAIN:
        is_bool = isinstance(value, bool)  # which Python counts as a number
        if not isinstance(value, _PLAIN[kind]) or (is_bool and kind not in ("bool", "object")):
            yield f"{path}: must be {kind}"
    elif not isinstance(value, dict):
        yield f"{path}: must be an object"
    else:
        yield from _wrong_object(_class(kind), value, path)


def _wrong_object(model: Any, value: dict[str, Any], path: str) -> Iterator[str]:
    attributes = {key: attribute for attribute, key in model.attribute_map.items()}
    yield from (f"{path}/{key}: no such field" for key in value if key not in attributes)
    known = {attributes[key]: inner for key, inner in value.items() if key in attributes}
    try:
        model(**{**{name: {} for name in _FILLED_IN if name in model.openapi_types}, **known})
    except ValueError as error:
        yield f"{path}: {error}"
    for attribute, inner in known.items():
        kind = "dict(str, quantity)" if attribute in _QUANTITIES else model.openapi_types[attribute]
        yield from _wrong(kind, inner, f"{path}/{model.attribute_map[attribute]}")


def _class(name: str) -> Any:
    """A class of the clients by its name."""
    modules = map(import_module, ("kubeflow.training.models", "kubernetes.client.models"))
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def _pods(value: Any) -> Iterator[dict[str, Any]]:
    """The templates of pods anywhere in a manifest."""
    if isinstance(value, dict):
        if "containers" in (value.get("spec") or {}):
            yield value
        for inner in value.values():
            yield from _pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pods(inner)


def _by_definition(manifest: dict[str, Any]) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    schema = _definitions().get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        return
    for error in Draft202012Validator(schema).iter_errors(manifest):
        yield f"/{'/'.join(map(str, error.path))}: {error.message[:500]}"


@cache
def _definitions() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for file in Path(FOLDER or "").glob("*.yaml"):
        definition = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in definition["versions"]:
            named = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
            found[named] = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(schema: Any) -> Any:
    """A schema in which objects have no other fields, as strict validation of an API server demands."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _strict(value) for key, value in schema.items()}
    is_open = {"additionalProperties", "x-kubernetes-preserve-unknown-fields"} & {*schema}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        inner["additionalProperties"] = False
    return inner
