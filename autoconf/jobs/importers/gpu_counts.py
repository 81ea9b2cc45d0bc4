"""Find the values that count GPUs in a manifest or an accelerate config, and what another layout makes of them.

A path is the index of a document, then keys and indices in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, NoReturn

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import Document, Path, dotted, shortened
from autoconf.jobs.importers.pods import GPU

_PER_JOB, _PER_WORKER, _WORKERS = range(3)
_OPTIONS = {
    "num_processes": _PER_JOB,  # accelerate launch, trl
    "num_machines": _WORKERS,
    "nproc_per_node": _PER_WORKER,  # torchrun
    "nnodes": _WORKERS,
    "num_gpus": _PER_WORKER,  # deepspeed
    "num_nodes": _WORKERS,
}
_ABBREVIATED = ("nproc_per_node", "nnodes")  # torchrun takes unique prefixes, accelerate does not
_OPTION = re.compile(r"(?<![\w-])--(n[\w-]+)(?:([=\s]+[\"']?)([^\s\"'\\;,)]+))?")
_BY_ITSELF = ("auto", "gpu")  # as many processes as a node has GPUs

_VARIABLE = (
    r"(?:\w+_)?(?:NPROC(?:_PER_NODE)?|NNODES|NUM_(?:PROCESSES|GPUS|NODES|MACHINES)|N?_?GPUS?(?:_PER_NODE)?"
    r"|WORLD_SIZE|VISIBLE_DEVICES)"
)
COUNTING_VARIABLE = re.compile(_VARIABLE, re.IGNORECASE)
# Ways to count GPUs that are recognized in a command, and refused.
_REFUSED = re.compile(
    rf"(?<![\w$-])(?:{_VARIABLE}=[\"']?\d[\d,]*|mpi(?:run|exec)\b|(?:--)?gpu[-_]ids[:=\s]+[\"']?\d[\d,]*"
    r"|--(?:n[-_]?)?gpus?(?:[-_]per[-_]node)?[=\s]+[\"']?\d+|--(?:devices|world[-_]size)[=\s]+[\"']?\d+)",
    re.IGNORECASE,
)
_CONFIG = re.compile(r"--(config[-_]file|accelerate[-_]config)\b")
_ACCELERATE = re.compile(r"(^|[\s/])(accelerate|trl)(\s|$)")
_EMBEDDED = re.compile(r"\b(num_processes|num_machines|gpu_ids|nproc_per_node|nnodes)\b")
_DIRECTIVE = re.compile(
    r"\s*(?:#SBATCH\s+(?P<slurm>--(?:gres|gpus|nodes|ntasks)[\w-]*|-[NGn]\b)|#BSUB\s+(?P<lsf>-gpu|-n\b|-nnodes)"
    r"|#PBS\s+(?P<pbs>-l\s+(?:\S*,)?(?:select|nodes)\b))"
)
_NONE = (None, None)


class Layout(NamedTuple):
    """The number of GPUs of each worker, and the number of workers."""

    gpus: int
    workers: int

    def of_option(self, option: str) -> int | None:
        """The value of a launcher's option, ``None`` if the option does not count GPUs.

        >>> [Layout(8, 2).of_option(name) for name in ("num-processes", "nproc", "nnodes", "neftune_noise_alpha")]
        [16, 8, 2, None]
        """
        name = option.replace("-", "_")
        if name not in _OPTIONS:
            name = next((full for full in _ABBREVIATED if len(name) > 1 and full.startswith(name)), "")
        if name not in _OPTIONS:
            return None
        return (self.gpus * self.workers, self.gpus, self.workers)[_OPTIONS[name]]


class Plan:
    """The values of one file that another layout changes.

    Attributes:
        changes: The new value of each path, of the same type as the old one.
        gpus_before: The GPUs that the file counts now, over all workers.
    """

    def __init__(
        self, file: str, documents: Sequence[Document], layout: Layout, runtime: tuple[int | None, int | None] = _NONE
    ) -> None:
        self.file = file
        self.documents = documents
        self.layout = layout
        self.gpus_of_runtime, self.nodes_of_runtime = runtime  # that a TrainJob has where it sets none
        self.changes: dict[Path, int | str] = {}
        self.gpus_before = 0
        self.notes: list[str] = []  # what the new counts need besides this file
        self.sets_variables = False  # whether Kubeflow sets PET_NNODES and PET_NPROC_PER_NODE in the container
        self.counts_processes = False  # whether a command overrides the count of an accelerate config

    def get(self, path: Path) -> Any:
        value: Any = self.documents[int(path[0])].value
        for name in path[1:]:
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and isinstance(name, int) and name < len(value):
                value = value[name]
            else:
                return None
        return value

    def where(self, path: Path) -> str:
        return place(self.file, self.documents, path)

    def refuse(self, path: Path, problem: str) -> NoReturn:
        raise BadInput(f"{self.where(path)}: {problem}")

    def number(self, path: Path) -> int:
        old = self.get(path)
        if old is None:
            self.refuse(path, "is missing; --patch changes a number that is there")
        if isinstance(old, bool) or not re.fullmatch(r"[0-9]{1,18}", str(old)):
            self.refuse(path, f"{shortened(old)!r}: --patch changes only a number")
        return int(old)

    def set(self, path: Path, count: int) -> None:
        """Plan a count."""
        self.number(path)
        self.changes[path] = count if isinstance(self.get(path), int) else str(count)

    def accelerate_config(self, config: Path) -> None:
        """Plan the changes of an accelerate config."""
        self.gpus_before = self.number((*config, "num_processes"))
        self.set((*config, "num_processes"), self.layout.gpus * self.layout.workers)
        self.set_unless_default((*config, "num_machines"), self.layout.workers)
        if self.layout.workers > 1 and self.get((*config, "main_process_ip")) is None:
            self.notes.append(
                f"{self.where((*config, 'num_machines'))}: several machines need main_process_ip, and machine_rank on "
                "each of them, which this config does not have; give them to accelerate launch"
            )
        ids = self.get((*config, "gpu_ids"))
        if ids is not None and ids != "all":
            if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", str(ids)):
                self.refuse((*config, "gpu_ids"), f"{shortened(ids)!r}: must be all, or numbers separated by commas")
            self._gpu_ids((*config, "gpu_ids"), str(ids).replace(" ", "").split(","))
            if str(self.get((*config, "distributed_type"))).startswith("MULTI_") and self.layout == Layout(1, 1):
                self.refuse((*config, "gpu_ids"), "accelerate refuses one GPU under distributed_type MULTI_GPU")

    def _gpu_ids(self, path: Path, ids: list[str]) -> None:
        if self.layout.gpus <= len(ids):
            ids = ids[: self.layout.gpus]
        elif ids == [str(i) for i in range(len(ids))]:
            ids = [str(i) for i in range(self.layout.gpus)]
        else:
            self.refuse(
                path, f"{shortened(','.join(ids))!r} names fewer than {self.layout.gpus} GPUs; name them, or all"
            )
        self.changes[path] = ",".join(ids)  # always text: accelerate splits it

    def set_unless_default(self, path: Path, count: int) -> None:
        """Plan a count that is 1 where it is missing."""
        if count != 1 or self.get(path) is not None:
            self.set(path, count)

    def pod(self, pod: Path) -> int:
        """Plan the changes of the container that has GPUs; return how many it has now."""
        containers = self.get((*pod, "containers"))
        paths = [(*pod, "containers", i) for i in range(len(containers if isinstance(containers, list) else []))]
        training = [path for path in paths if self._gpus((*path, "resources"))]
        if len(training) != 1:
            self.refuse((*pod, "containers"), f"{len(training)} containers have resources of {GPU}; one must have")
        return self.container(training[0], (*training[0], "resources"))

    def _gpus(self, resources: Path) -> list[Path]:
        paths = [(*resources, part, GPU) for part in ("limits", "requests")]
        return [path for path in paths if self.get(path) is not None]

    def container(self, container: Path, resources: Path) -> int:
        """Plan the changes of a container that has GPUs; return how many it has now."""
        counts = self._gpus(resources)
        if not counts:
            self.refuse(resources, f"has no {GPU} to change")
        for path in counts:
            self.set(path, self.layout.gpus)
        self.command(container)
        return self.number(counts[0])

    def command(self, container: Path) -> None:
        """Plan the changes of a container's command."""
        words = [
            ((*container, part, i), str(word))
            for part in ("command", "args")
            for i, word in enumerate(_list(self.get((*container, part))))
        ]
        for path, _ in words:
            if isinstance(self.get(path), dict | list):
                self.refuse(path, "a word of a command must be text")
        self._check_variables(container)
        self._words(words)
        self._check_launcher(container, words)

    def processes(self, path: Path) -> None:
        """Plan the number of processes of a pod, unless it follows from its GPUs."""
        if self.get(path) is not None and self.get(path) not in _BY_ITSELF:
            self.set(path, self.layout.gpus)

    def _check_variables(self, container: Path) -> None:
        for i, entry in enumerate(_list(self.get((*container, "env")))):
            name, value = (entry.get("name"), entry.get("value")) if isinstance(entry, dict) else (None, None)
            if COUNTING_VARIABLE.fullmatch(str(name)) and re.fullmatch(r"\d[\d,\s]*", str(value)):
                path = (*container, "env", i, "value")
                self.refuse(path, f"{shortened(name)} counts GPUs, and --patch changes no variable")

    def _words(self, words: list[tuple[Path, str]]) -> None:
        """Plan the changes of options that have their value in the next word, or in a text of any length."""
        for (path, word), following in zip_longest(words, words[1:]):
            alone = _OPTION.fullmatch(word)
            count = self.layout.of_option(alone[1]) if alone and alone[3] is None else None
            if count is None:
                new = self.new_text(word, path)
                if new != word:
                    self.changes[path] = new
            elif following is None:
                self.refuse(path, f"{word} has no number to change")
            elif following[1] not in _BY_ITSELF and not self.by_kubeflow(alone[1] if alone else "", following[1]):
                self.set(following[0], count)

    def by_kubeflow(self, option: str, value: str) -> bool:
        """Whether an option has the variable that Kubeflow sets to its count."""
        if not self.sets_variables:
            return False
        name = option.replace("-", "_")
        named = {"nnodes": "PET_NNODES", "num_machines": "PET_NNODES", "nproc_per_node": "PET_NPROC_PER_NODE"}
        return re.fullmatch(r"\$[{(]?\w+[)}]?", value) is not None and named.get(name) == value.strip("${}()")

    def new_text(self, text: str, path: Path) -> str:
        """A command with the counts of the layout."""

        def counted(found: re.Match[str]) -> str:
            option, between, value = found.groups()
            count = self.layout.of_option(option)
            if count is None or value in _BY_ITSELF:
                return found[0]
            if value is None:
                self.refuse(path, f"--{option} has no number to change")
            if self.by_kubeflow(option, value):
                return found[0]
            if not re.fullmatch("[0-9]+", value):
                self.refuse(path, f"--{option}: {shortened(value)!r}: --patch changes only a number")
            return f"--{option}{between}{count}"

        return _OPTION.sub(counted, text)

    def _check_launcher(self, container: Path, words: list[tuple[Path, str]]) -> None:
        """Refuse a command that the new counts would break, or that counts GPUs in another way."""
        text = " ".join(word for _, word in words)
        options = {found[1].replace("-", "_") for found in _OPTION.finditer(text)}
        self.counts_processes |= "num_processes" in options
        several = self.layout.workers > 1
        if other := _REFUSED.search(text):
            self.refuse(container, f"{shortened(other[0])!r} counts GPUs, and --patch does not change it")
        if _CONFIG.search(text) and "num_processes" not in options:
            self.refuse(container, "the accelerate config that is named counts processes; add --num_processes")
        if several and _ACCELERATE.search(text) and "num_machines" not in options:
            self.refuse(container, "several workers need accelerate's --num_machines, which is missing")
        if several and re.search(r"--standalone\b", text):
            self.refuse(container, "torchrun's --standalone is for one worker")
        if self.layout == Layout(1, 1) and re.search(r"--multi[-_]gpu\b", text):
            self.refuse(container, "accelerate refuses --multi_gpu on one GPU")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def place(file: str, documents: Sequence[Document], path: Path) -> str:
    """File, line and key of a value, or of the closest one around it."""
    line = documents[int(path[0])].closest_line(*path[1:])
    return f"{file}{'' if line is None else f':{line}'} {dotted(path[1:])}".rstrip()


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values below a value that hold no other values, each with its path.

    >>> list(leaves({"a": [1, {}]}))
    [(('a', 0), 1), (('a', 1), {})]
    """
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, name))
    else:
        yield path, value


def other_counts(documents: Sequence[Document]) -> Iterator[tuple[Path, str]]:
    """The settings of documents that count GPUs, and texts in them that have such settings."""
    for i, document in enumerate(documents):
        for path, value in leaves(document.value, (i,)):
            if value is None or value == "all":
                continue
            found = _EMBEDDED.fullmatch(str(path[-1])) or _EMBEDDED.search(value if isinstance(value, str) else "")
            if found:
                yield path, found[1]


def script_count(text: str) -> tuple[int, str] | None:
    """The line, from 1, and the word with which a script counts GPUs; ``None`` if it does not."""
    layout = Layout(1, 1)
    for number, line in enumerate(text.splitlines(), 1):
        if found := _DIRECTIVE.match(line):
            return number, str(found[found.lastgroup or 0])
        if line.lstrip().startswith("#"):
            continue
        if found := _REFUSED.search(line):
            return number, found[0]
        for found in _OPTION.finditer(line):
            if layout.of_option(found[1]) is not None:
                return number, f"--{found[1]}"
    return None
