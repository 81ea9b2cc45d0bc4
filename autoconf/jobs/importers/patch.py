"""A manifest or an accelerate config with other counts of GPUs: numbers replaced in the text, all else as it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import yaml

from autoconf.errors import BadInput
from autoconf.jobs.importers.kubernetes import KINDS

_GPU = "nvidia.com/gpu"
_OPTION = re.compile(r"--(num[-_]processes|num[-_]machines|nproc[-_]per[-_]node|nnodes)(?![\w-])")
_COUNT = re.compile(_OPTION.pattern + r"([=\s]+[\"']?)([^\s\"'\\;,]+)")
_CONFIG = re.compile(r"--(config[-_]file|accelerate[-_]config)\b")
_ACCELERATE = re.compile(r"(^|[\s/])(accelerate|trl)(\s|$)")
_BY_ITSELF = ("auto", "gpu")  # as many processes as a node has GPUs


class Layout(NamedTuple):
    """How many GPUs a job gets."""

    gpus: int  # per worker
    workers: int

    def count(self, option: str) -> int:
        """What an option of a launcher that counts is to say.

        >>> Layout(8, 2).count("num-processes"), Layout(8, 2).count("nnodes")
        (16, 2)
        """
        match option.replace("-", "_"):
            case "num_processes":
                return self.gpus * self.workers
            case "nproc_per_node":
                return self.gpus
            case _:
                return self.workers


def patched(texts: Sequence[tuple[str, str]], layout: Layout) -> str:
    """The one among some files that counts GPUs, with the counts of a layout.

    Args:
        texts: names and texts of files. A manifest goes before accelerate's configs.
        layout: the counts.

    Raises:
        BadInput: no file counts GPUs, or more than one does, or a count cannot be changed; the message names it.

    >>> print(patched([("a.yaml", "num_processes: 8  # all\\nnum_machines: 1\\n")], Layout(4, 2)), end="")
    num_processes: 8  # all
    num_machines: 2
    """
    jobs = [(_Patch(file, text, layout), node) for file, text in texts for node in _nodes(text) if _kind(node) in KINDS]
    configs = [
        (_Patch(file, text, layout), node)
        for file, text in texts
        for node in _nodes(text)
        if _get(node, "num_processes") is not None and _kind(node) is None
    ]
    found = jobs or configs
    if len(found) != 1:
        raise BadInput(
            f"--patch: one file must be a {' or '.join(KINDS)}, or an accelerate config with num_processes; "
            f"{len(found)} of {', '.join(file for file, _ in texts)} are"
        )
    patch, node = found[0]
    if jobs:
        for other in _nodes(patch.text):
            data = _get(other, "data")
            values = [str(value.value) for _, value in data.value] if isinstance(data, yaml.MappingNode) else []
            if _kind(other) == "ConfigMap" and any('"num_processes"' in value for value in values):
                raise BadInput(f"{patch.file}: a ConfigMap counts processes, which cannot be changed")
        patch.manifest(node)
    else:
        patch.config(node)
    return patch.result()


def _nodes(text: str) -> list[yaml.Node]:
    try:
        return list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.YAMLError:  # a command line
        return []


def _get(node: yaml.Node | None, *path: str) -> yaml.Node | None:
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _kind(node: yaml.Node) -> str | None:
    kind = _get(node, "kind")
    return kind.value if isinstance(kind, yaml.ScalarNode) else None


class _Patch:
    """Replacements in one text, each by where it starts; what YAML's aliases repeat is replaced once."""

    def __init__(self, file: str, text: str, layout: Layout) -> None:
        self.file = file
        self.text = text
        self._layout = layout
        self._edits: dict[int, tuple[int, str]] = {}

    def result(self) -> str:
        text = self.text
        for start, (end, new) in sorted(self._edits.items(), reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def config(self, node: yaml.Node) -> None:
        self._set(_get(node, "num_processes"), self._layout.count("num_processes"), "num_processes")
        machines = _get(node, "num_machines")
        if machines is not None or self._layout.workers > 1:  # 1 is what it is by default
            self._set(machines, self._layout.workers, "num_machines")

    def manifest(self, node: yaml.Node) -> None:
        spec = _get(node, "spec")
        if _kind(node) == "TrainJob":
            self._set(_get(spec, "trainer", "numNodes"), self._layout.workers, "spec.trainer.numNodes")
            self._processes(_get(spec, "trainer", "numProcPerNode"), "spec.trainer.numProcPerNode")
            trainer = _get(spec, "trainer")
            self._container(trainer, _get(trainer, "resourcesPerNode"), "spec.trainer.resourcesPerNode")
            return
        if _get(spec, "elasticPolicy") is not None:
            raise BadInput(f"{self.file}, spec.elasticPolicy: the number of workers changes while the job runs")
        self._processes(_get(spec, "nprocPerNode"), "spec.nprocPerNode")
        master = _get(spec, "pytorchReplicaSpecs", "Master")
        self._replicas("Master", master, 1 if master is not None else 0)
        worker = _get(spec, "pytorchReplicaSpecs", "Worker")
        self._replicas("Worker", worker, self._layout.workers - (master is not None))

    def _replicas(self, role: str, node: yaml.Node | None, count: int) -> None:
        path = f"spec.pytorchReplicaSpecs.{role}"
        if node is None:
            if count:
                raise BadInput(f"{self.file}, {path}: is needed for {self._layout.workers} workers, and is not there")
            return
        replicas = _get(node, "replicas")
        if replicas is not None or count != 1:  # 1 is what it is by default
            self._set(replicas, count, f"{path}.replicas")
        containers = _items(_get(node, "template", "spec", "containers"))
        training = [c for c in containers if self._gpus(_get(c, "resources"))]
        if not training:
            raise BadInput(f"{self.file}, {path}.template.spec.containers: none has resources of {_GPU} to change")
        for container in training:
            self._container(container, _get(container, "resources"), f"{path}.template.spec.containers")

    def _gpus(self, resources: yaml.Node | None) -> list[yaml.Node]:
        found = (_get(resources, part, _GPU) for part in ("limits", "requests"))
        return [node for node in found if node is not None]

    def _container(self, container: yaml.Node | None, resources: yaml.Node | None, path: str) -> None:
        counts = self._gpus(resources)
        if not counts:
            raise BadInput(f"{self.file}, {path}: has no {_GPU} to change")
        for node in counts:
            self._set(node, self._layout.gpus, f"{path}: {_GPU}")
        self._check_launcher(container, path)
        for part in ("command", "args"):
            words = _items(_get(container, part))
            for word, following in zip_longest(words, words[1:]):
                self._word(word, following, part)

    def _check_launcher(self, container: yaml.Node | None, path: str) -> None:
        """Refuse where other counts would need options that are not there."""
        words = [str(word.value) for part in ("command", "args") for word in _items(_get(container, part))]
        options = {found[1].replace("-", "_") for word in words for found in _OPTION.finditer(word)}
        if "num_processes" not in options and any(_CONFIG.search(word) for word in words):
            raise BadInput(
                f"{self.file}, {path}: the config that is named counts processes; say --num_processes as well"
            )
        if (
            self._layout.workers > 1
            and "num_machines" not in options
            and any(_ACCELERATE.search(word) for word in words)
        ):
            raise BadInput(f"{self.file}, {path}: several workers need accelerate's --num_machines, which is not there")

    def _word(self, word: yaml.Node, following: yaml.Node | None, part: str) -> None:
        """An argument of its own with its value in the next one, or a text with any number of both."""
        if alone := _OPTION.fullmatch(str(word.value)):
            name = f"{part}: {word.value}"
            if following is None or following.value not in _BY_ITSELF:
                self._set(following, self._layout.count(alone[1]), name)
            return
        start, end = word.start_mark.index, word.end_mark.index
        raw = self.text[start:end]
        if len(_OPTION.findall(raw)) != len(_COUNT.findall(raw)):
            raise BadInput(f"{self.file}, {part}: an option that counts GPUs has no number to change")
        if (new := _COUNT.sub(self._counted, raw)) != raw:
            self._edits[start] = (end, new)

    def _counted(self, found: re.Match[str]) -> str:
        if found[3] in _BY_ITSELF:
            return found[0]
        if not found[3].isdecimal():
            raise BadInput(f"{self.file}: --{found[1]}: {found[3]!r}: only a number can be changed")
        return f"--{found[1]}{found[2]}{self._layout.count(found[1])}"

    def _processes(self, node: yaml.Node | None, path: str) -> None:
        if node is not None and node.value not in _BY_ITSELF:
            self._set(node, self._layout.gpus, path)

    def _set(self, node: yaml.Node | None, number: int, path: str) -> None:
        if node is None:
            raise BadInput(f"{self.file}, {path}: is not there to be changed")
        if not isinstance(node, yaml.ScalarNode) or not node.value.isdecimal():
            raise BadInput(f"{self.file}, {path}: {node.value!r}: only a number can be changed")
        start, end = node.start_mark.index, node.end_mark.index
        self._edits[start] = (end, self.text[start:end].replace(node.value, str(number)))
