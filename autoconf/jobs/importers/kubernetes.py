"""Read the training job of a Kubernetes manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import Document, NotDocuments, Path, dotted, load_documents, shortened
from autoconf.jobs.importers.key_table import Place, Setting, settings
from autoconf.jobs.importers.launchers import Launch, launch_in_script, launch_of
from autoconf.jobs.importers.objectives import check_given, hint, objective_in
from autoconf.jobs.importers.pods import KINDS, RUNTIMES, at, containers_of, kind_of, mapping, resources_of
from autoconf.jobs.job import BATCHES

_PRODUCT = "nvidia.com/gpu.product"
_PARTS_OF_GPUS = ("nvidia.com/mig-", "nvidia.com/gpu.shared")  # MIG's slices, and GPUs shared in time
_CONFIG_PATH = "SFT_TRAINER_CONFIG_JSON_PATH"  # fms-hf-tuning v3.1.0, tuning/utils/config_utils.py
_CONFIG_VARIABLE = "SFT_TRAINER_CONFIG_JSON_ENV_VAR"  # a pickle in base64
_SERVES = re.compile(r"\bvllm(\.entrypoints\.\S+| serve\b)|\bsglang\.launch_server\b|\btext-generation-launcher\b")
_TRAINS = re.compile(r"(?i)train|tun(e|ing)\b|\.py\b")  # or may train


class Manifest(NamedTuple):
    """The settings of a manifest, and the commands in it that start a training."""

    settings: list[Setting]
    launches: list[Launch]


def is_manifest(documents: Sequence[Document]) -> bool:
    """Whether documents are Kubernetes objects."""
    return any(isinstance(d.value, dict) and {"apiVersion", "kind"} <= set(d.value) for d in documents)


def is_runtime(documents: Sequence[Document]) -> bool:
    """Whether Kubernetes objects are the runtimes of ``TrainJob``s, and no jobs."""
    kinds = {kind_of(document.value) for document in documents}
    return bool(kinds & set(RUNTIMES)) and not kinds & set(KINDS)


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
    >>> [str(setting.place) for setting in launch.settings]
    ['job.yaml:1 spec.trainer.command: trl', 'job.yaml:1 spec.trainer.args: --optim']
    """
    found = _JobDocument(_training_job(documents, file), file)
    launches = []
    found.check_whole_gpus(options)
    commands = []
    for path in containers_of(found.document.value):
        container = mapping(at(found.document.value, path))
        variables = _variables(container)
        if _CONFIG_VARIABLE in variables:
            raise BadInput(f"{found.place((*path, 'env'))}: {_CONFIG_VARIABLE}: a pickled configuration is not read")
        if _CONFIG_PATH in variables:
            place = found.place((*path, "env"), _CONFIG_PATH)
            launches.append(_mounted(variables[_CONFIG_PATH], documents, place))
        elif launch := found.launch(path, variables):
            launches.append(launch)
        else:
            commands.append((found.place(path), _words(container, "command") + _words(container, "args")))
    entrypoint = at(found.document.value, ("spec", "entrypoint"))
    if isinstance(entrypoint, str):  # of a RayJob
        if launch := launch_in_script(entrypoint, partial(found.place, ("spec", "entrypoint")), {}):
            launches.append(launch)
        commands.insert(0, (found.place(("spec", "entrypoint")), entrypoint.split()))
    if not launches:
        _check_described(commands, options, found.place(("spec",)))
    return Manifest(list(found.gpu_types(found.document.value, ())), launches)


def _training_job(documents: Sequence[Document], file: str) -> Document:
    objects = [document for document in documents if isinstance(document.value, dict)]
    jobs = [document for document in objects if str(document.value.get("kind")) in KINDS]
    if len(jobs) != 1:
        kinds = shortened(", ".join(str(document.value.get("kind")) for document in objects))
        raise BadInput(
            f"{file}: must have one {', '.join(KINDS)}, has {kinds}; "
            "or give the job by options without --job, and change its counts by hand"
        )
    kind, version = jobs[0].value["kind"], jobs[0].value.get("apiVersion")
    if version != KINDS[kind]:
        where = Place(file, jobs[0].line("apiVersion"), "apiVersion")
        raise BadInput(f"{where}: {shortened(version)!r}: a {kind} is read in {KINDS[kind]} only")
    return jobs[0]


def _check_described(commands: Sequence[tuple[Place, list[str]]], options: Mapping[str, Any], spec: Place) -> None:
    """Refuse a job of which no command is read, unless options describe it."""
    for place, words in commands:
        split = " ".join(words).lower().split()
        programs = [word for before, word in zip(["", *split], split, strict=False) if _names_program(before, word)]
        if other := next(filter(objective_in, programs), None):
            check_given(hint(place, other), options)
    _check_not_served([(place, " ".join(words)) for place, words in commands])
    if missing := missing_options(options):
        place, words = commands[0] if commands else (spec, [])
        command = f"the command {shortened(' '.join(words))!r} is not read" if words else "it has no command"
        raise BadInput(f"{place}: {command}; give {', '.join(missing)}")


def _check_not_served(commands: Sequence[tuple[Place, str]]) -> None:
    """Refuse a job that serves a model, whatever options describe."""
    served = [(place, found[0]) for place, text in commands if (found := _SERVES.search(text))]
    if served and not any(_TRAINS.search(text) for _, text in commands):
        place, server = served[0]
        raise BadInput(f"{place}: {server}: serves a model, and no command here trains one")


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


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _words(container: Mapping[str, Any], part: str) -> list[str]:
    return [str(word) for word in _list(container.get(part))]


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    entries = [entry for entry in _list(container.get("env")) if isinstance(entry, Mapping) and "value" in entry]
    return {str(entry.get("name")): str(entry["value"]) for entry in entries}


def _mounted(path: str, documents: Sequence[Document], place: Place) -> Launch:
    """Read the configuration of fms-hf-tuning's image from a ``ConfigMap`` in the same file."""
    name = path.rpartition("/")[2]
    objects = [mapping(document.value) for document in documents]
    maps = [mapping(item.get("data")) for item in objects if item.get("kind") == "ConfigMap"]
    texts = [data[name] for data in maps if name in data]
    where = f"{place}: {shortened(path)!r}"
    if len(texts) != 1:
        raise BadInput(f"{where}: {len(texts)} ConfigMaps in this file have a {shortened(name)}; one is needed")
    try:
        found = load_documents(str(texts[0]), where)
    except NotDocuments as error:
        raise BadInput(str(error)) from None
    if len(found) != 1 or not isinstance(found[0].value, dict):
        raise BadInput(f"{where}: must be a JSON object")
    inside = settings("arguments", found[0].value, lambda key: place._replace(key=f"{place.key}, {name}: {key}"))
    return Launch("fms-hf-tuning", list(inside))


class _JobDocument(NamedTuple):
    document: Document
    file: str

    def place(self, path: Path, word: str = "") -> Place:
        """The place of a value, or of a word in it."""
        key = dotted(path)
        return Place(self.file, self.document.closest_line(*path), f"{key}: {shortened(word)}" if word else key)

    def launch(self, container: Path, variables: Mapping[str, str]) -> Launch | None:
        """The training that the command of a container starts."""
        words: list[tuple[Path, int, str]] = [
            ((*container, part), i, word)
            for part in ("command", "args")
            for i, word in enumerate(_words(mapping(at(self.document.value, container)), part))
        ]

        def place(option: str) -> Place:
            last = next(((path, i) for path, i, word in reversed(words) if option in word), (container, None))
            path, i = last
            line = self.document.closest_line(*path, *(() if i is None else (i,)))
            return self.place(path, option)._replace(line=line)

        return launch_of([word for _, _, word in words], place, variables)

    def check_whole_gpus(self, options: Mapping[str, Any]) -> None:
        """Refuse parts of GPUs, which have less memory than the type that a node selector names."""
        paths = [resources_of(container) for container in containers_of(self.document.value)]
        for path in [(*resources, part) for resources in paths for part in ("limits", "requests")]:
            for name in mapping(at(self.document.value, path)):
                if str(name).startswith(_PARTS_OF_GPUS) and "gpu_memory_gib" not in options:
                    raise BadInput(f"{self.place((*path, name))}: a part of a GPU; give its memory by --gpu-memory-gib")

    def gpu_types(self, value: Any, path: Path) -> Iterator[Setting]:
        """The types of GPU that node selectors and affinities anywhere in a manifest name."""
        for name, item in value.items() if isinstance(value, dict) else enumerate(_list(value)):
            yield from self.gpu_types(item, (*path, name))
        names: Any = mapping(value).get(_PRODUCT)
        if mapping(value).get("key") == _PRODUCT:
            names = _list(value.get("values"))
            if value.get("operator") == "In" and len(names) == 1:
                names = names[0]
        if names is not None:
            place = self.place((*path, _PRODUCT))
            yield Setting(place, "kubernetes", _PRODUCT, names)
