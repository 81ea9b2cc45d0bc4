"""Read the training job of a Kubernetes manifest: a ``PyTorchJob``, a ``TrainJob`` or a ``Job``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import Document, NotDocuments, load_documents, shortened
from autoconf.jobs.importers.key_table import Said, settings
from autoconf.jobs.importers.shell import Launch, launch_of
from autoconf.jobs.job import BATCHES

KINDS = {"PyTorchJob": "kubeflow.org/v1", "TrainJob": "trainer.kubeflow.org/v1alpha1", "Job": "batch/v1"}
_PRODUCT = "nvidia.com/gpu.product"
_CONFIG_PATH = "SFT_TRAINER_CONFIG_JSON_PATH"  # fms-hf-tuning v3.1.0, tuning/utils/config_utils.py
_CONFIG_VARIABLE = "SFT_TRAINER_CONFIG_JSON_ENV_VAR"  # a pickle in base64
_OTHER_OBJECTIVE = re.compile(
    r"(?<![a-z])(dpo|kto|orpo|cpo|grpo|rloo|ppo|gkd|prm|rm|reward|distill|distillation|pretrain|pretraining)(?![a-z])"
)


class Manifest(NamedTuple):
    """The settings of a manifest, and the commands in it that start a training."""

    said: list[Said]
    launches: list[Launch]


def is_manifest(documents: Sequence[Document]) -> bool:
    """Whether documents are Kubernetes objects."""
    return any(isinstance(d.value, dict) and {"apiVersion", "kind"} <= set(d.value) for d in documents)


def read_manifest(documents: Sequence[Document], file: str, options: Mapping[str, Any]) -> Manifest:
    """Read the one training job among Kubernetes objects.

    Args:
        documents: The objects.
        file: The name of the file.
        options: Fields of the job that are given otherwise. If these are the model, the method, the length and a batch,
            the command may be any; its settings are then not read.

    Raises:
        BadInput: There is no job of a kind that is read, or more than one; or no container has a command that is read.

    >>> text = "{apiVersion: trainer.kubeflow.org/v1alpha1, kind: TrainJob, spec: {trainer: {"
    >>> documents = load_documents(f"{text}command: [trl, sft], args: [--optim, sgd]}}}}}}", "job.yaml")
    >>> (launch,) = read_manifest(documents, "job.yaml", {}).launches
    >>> [thing.where for thing in launch.said]
    ['job.yaml, spec.trainer.command: trl', 'job.yaml, spec.trainer.args: --optim']
    """
    objects = [document.value for document in documents if isinstance(document.value, dict)]
    job = _job(objects, file)
    launches = []
    commands = []
    for path, container in containers(job):
        where = f"{file}, {path}"
        variables = _variables(container)
        if _CONFIG_VARIABLE in variables:
            raise BadInput(f"{where}.env: {_CONFIG_VARIABLE}: a pickled configuration is not read")
        if _CONFIG_PATH in variables:
            launches.append(_mounted(variables[_CONFIG_PATH], objects, f"{where}.env: {_CONFIG_PATH}"))
        elif launch := _started(container, where, variables):
            launches.append(launch)
        else:
            commands.append((where, _words(container, "command") + _words(container, "args")))
    if not launches:
        _check_described(commands, options, file)
    return Manifest(list(_gpu_types(job, f"{file}, ")), launches)


def _job(objects: Sequence[Mapping[str, Any]], file: str) -> Mapping[str, Any]:
    jobs = [thing for thing in objects if str(thing.get("kind")) in KINDS]
    if len(jobs) != 1:
        kinds = shortened(", ".join(str(thing.get("kind")) for thing in objects))
        raise BadInput(
            f"{file}: must have one {', '.join(KINDS)}, has {kinds}; "
            "or give the job by options without --job, and change its counts by hand"
        )
    kind, version = jobs[0]["kind"], jobs[0].get("apiVersion")
    if version != KINDS[kind]:
        raise BadInput(f"{file}, apiVersion: {shortened(version)!r}: a {kind} is read in {KINDS[kind]} only")
    return jobs[0]


def _check_described(commands: Sequence[tuple[str, list[str]]], options: Mapping[str, Any], file: str) -> None:
    """Refuse a job of which no command is read, unless options describe it."""
    for where, words in commands:
        split = " ".join(words).lower().split()
        programs = [word for before, word in zip(["", *split], split, strict=False) if _names_program(before, word)]
        if other := _OTHER_OBJECTIVE.search(" ".join(programs)):
            raise BadInput(f"{where}: {other[0]} is not supervised fine-tuning, the only objective that is answered")
    if missing := missing_options(options):
        where, words = commands[0] if commands else (f"{file}, spec", [])
        command = f"the command {shortened(' '.join(words))!r} is not read" if words else "it has no command"
        raise BadInput(f"{where}: {command}; give {', '.join(missing)}")


def missing_options(options: Mapping[str, Any]) -> list[str]:
    """The options that would describe a job of which no setting is read.

    >>> missing_options({"model_name": "llama-7b", "method": "lora", "batch_size": 8})
    ['--tokens-per-sample']
    """
    missing = [field for field in ("model_name", "method", "tokens_per_sample") if field not in options]
    if not any(batch in options for batch in BATCHES):
        missing.append("per_device_train_batch_size")
    return [f"--{field.replace('_', '-')}" for field in missing]


def _names_program(before: str, word: str) -> bool:
    return word.endswith(".py") or before in ("-m", "--module", "trl", "swift")


def containers(job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The containers of a job's pods, or the trainer of a ``TrainJob``, each with its path."""
    spec = _mapping(job.get("spec"))
    if job.get("kind") == "TrainJob":
        yield "spec.trainer", _mapping(spec.get("trainer"))
        return
    roles = _mapping(spec.get("pytorchReplicaSpecs")).items()
    pods = [(f"spec.pytorchReplicaSpecs.{shortened(role)}", replicas) for role, replicas in roles]
    for path, replicas in [("spec", spec)] if job.get("kind") == "Job" else pods:
        pod = _mapping(_mapping(_mapping(replicas).get("template")).get("spec"))
        for i, container in enumerate(_list(pod.get("containers"))):
            yield f"{path}.template.spec.containers[{i}]", _mapping(container)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(container: Mapping[str, Any], part: str) -> list[str]:
    return [str(word) for word in _list(container.get(part))]


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    entries = [entry for entry in _list(container.get("env")) if isinstance(entry, Mapping) and "value" in entry]
    return {str(entry.get("name")): str(entry["value"]) for entry in entries}


def _started(container: Mapping[str, Any], where: str, variables: Mapping[str, str]) -> Launch | None:
    args, command = _words(container, "args"), _words(container, "command")

    def place(option: str) -> str:
        inside = "args" if any(option in word for word in args) else "command"
        return f"{where}.{inside}: {shortened(option)}" if option else f"{where}.{inside}"

    return launch_of([*command, *args], place, variables)


def _mounted(path: str, objects: Sequence[Mapping[str, Any]], where: str) -> Launch:
    """Read the configuration of fms-hf-tuning's image from a ``ConfigMap`` in the same file."""
    name = path.rpartition("/")[2]
    maps = [_mapping(thing.get("data")) for thing in objects if thing.get("kind") == "ConfigMap"]
    texts = [data[name] for data in maps if name in data]
    where = f"{where}: {shortened(path)!r}"
    if len(texts) != 1:
        raise BadInput(f"{where}: {len(texts)} ConfigMaps in this file have a {shortened(name)}; one is needed")
    try:
        found = load_documents(str(texts[0]), where)
    except NotDocuments as error:
        raise BadInput(str(error)) from None
    if len(found) != 1 or not isinstance(found[0].value, dict):
        raise BadInput(f"{where}: must be a JSON object")
    return Launch("fms-hf-tuning", list(settings(f"{where}, {name}: ", "arguments", found[0].value)))


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
