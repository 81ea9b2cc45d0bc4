"""Manifests held against the published schemas of their kinds.

``kubeflow-trainer-api`` is the client that the Kubeflow project generates from the schemas of TrainJob, JobSet and the
kinds of Kubernetes that they contain. Other kinds have their pods checked by it. With the environment variable
``AUTOCONF_CRDS``, a folder of CustomResourceDefinitions (``kubectl get crd -o yaml``, or the files of a release), a
manifest is also validated against the schema that an API server would use, in which no other field may occur.
"""

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

CLIENT = find_spec("kubeflow_trainer_api") is not None
FOLDER = os.environ.get("AUTOCONF_CRDS")
_MODELS = {"TrainJob": "TrainerV1alpha1TrainJob", "JobSet": "JobsetV1alpha2JobSet", "Job": "IoK8sApiBatchV1Job"}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the published schemas say against a manifest; a known field of a wrong type, or an unknown field."""
    return [*(_by_client(manifest) if CLIENT else []), *(_by_definition(manifest) if FOLDER else [])]


def _by_client(manifest: dict[str, Any]) -> Iterator[str]:
    from kubeflow_trainer_api import models

    if name := _MODELS.get(manifest["kind"]):
        yield from _lost(getattr(models, name), manifest)
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
