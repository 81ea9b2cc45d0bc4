"""The GPUs and nodes that a script requests from a scheduler: Slurm's ``#SBATCH``, LSF's ``#BSUB``, PBS' ``#PBS``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Place

PER_NODE, GPUS, NODES, PER_TASK, TASKS, TASKS_PER_NODE = (
    "GPUs per node", "GPUs", "nodes", "GPUs per task", "tasks", "tasks per node",
)  # fmt: skip
_MEANINGS = {
    "--gres": PER_NODE, "--gpus-per-node": PER_NODE, "--gpus": GPUS, "-G": GPUS, "--nodes": NODES, "-N": NODES,
    "--gpus-per-task": PER_TASK, "--ntasks": TASKS, "-n": TASKS, "--ntasks-per-node": TASKS_PER_NODE,
    "--tasks-per-node": TASKS_PER_NODE,
}  # fmt: skip
LSF = "LSF's bsub"
_OF_GPUS = (PER_NODE, GPUS, PER_TASK)
_SLURM = re.compile(r"#SBATCH\s(.*)")
_LSF = re.compile(r"#BSUB\s(.*)")
_PBS = re.compile(r"#PBS\s(.*)")
_OPTION = re.compile(r"(?<!\S)(?:(--[\w-]+)(?:=|\s+)|(-[NGn])\s*)([\"']?)([^\s\"'#]+)\3")
_SRUN = re.compile(r"(?:^|[\s;&|(])srun((?:(?:\s|\\\n)+-[^\s;&|\\]+(?:[ \t]+[\w.:,/%]+(?=[\s\\]+\S))?)+)")
# The keys of LSF's -gpu, -n, -nnodes and -R, and of PBS' -l, that count.
_LSF_KEYS = (
    (re.compile(r"-gpu\s+[\"']?(?:[^\"'\s]*:)?num=(\d+)(?!\d|/task)"), PER_NODE, "-gpu"),
    (re.compile(r"-gpu\s+[\"']?(?:[^\"'\s]*:)?num=(\d+)/task"), PER_TASK, "-gpu"),
    (re.compile(r"(?<!\S)-nnodes\s+(\d+)"), NODES, "-nnodes"),
    (re.compile(r"(?<!\S)-n\s+(\d+)"), TASKS, "-n"),
    (re.compile(r"span\[\s*ptile\s*=\s*(\d+)\s*\]"), TASKS_PER_NODE, "-R span[ptile]"),
    (re.compile(r"span\[\s*hosts\s*=\s*(\d+)\s*\]"), NODES, "-R span[hosts]"),
)
_LSF_KIND = re.compile(r"-gpu\s+[\"']?[^\"'\s]*\bgmodel=(\w+)")
_PBS_KEYS = (
    (re.compile(r"(?<!\S)-l\s+(?:[^\s]*,)?(?:select|nodes)=(\d+)"), NODES, "-l select"),
    (re.compile(r"(?<!\S)-l\s+[^\s]*:n?gpus=(\d+)"), PER_NODE, "-l ngpus"),
)
_PBS_KIND = re.compile(r":gpu_(?:model|type)=([\w-]+)")


class Request(NamedTuple):
    """A count that a script requests.

    Attributes:
        place: The option.
        number: The count, as written.
        what: The unit of the count.
        kind: The type of GPU; empty text if the option names none.
        scheduler: The scheduler and its command.
        start: The index of the number in the text; ``None`` if the number is implied.
    """

    place: Place
    number: str
    what: str
    kind: str = ""
    scheduler: str = "Slurm's sbatch"
    start: int | None = None

    def __str__(self) -> str:
        kind = f" ({shortened(self.kind)})" if self.kind else ""
        return f"{self.place}: {shortened(self.number)} {self.what}{kind} are requested"

    def record(self) -> dict[str, Any]:
        """The request as columns: value, file, line, key and rule."""
        file, line, key = self.place
        value = f"{self.kind}:{self.number}" if self.kind else self.number
        return {"value": value, "file": file, "line": line, "key": key, "rule": f"{self.scheduler}: {self.what}"}


class Allocation(NamedTuple):
    """What a script requests altogether; ``None`` where it is not certain.

    Attributes:
        nodes: The number of nodes.
        gpus_per_node: GPUs of each node.
        gpus: GPUs of all nodes.
        tasks: The number of processes that ``srun`` starts.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpus: int | None = None
    tasks: int | None = None


def requested(text: str, file: str) -> Iterator[Request]:
    """Find the requests of a script to its scheduler: each option that counts GPUs, nodes or tasks.

    Directives end at the first command, as they do for the schedulers; options of ``srun`` count in a script without
    directives.

    >>> list(map(str, requested("#!/bin/bash\\n#SBATCH --gres=gpu:a100:4\\n", "job.sbatch")))
    ['job.sbatch:2 #SBATCH --gres: 4 GPUs per node (a100) are requested']
    """
    found = list(_directives(text, file))
    yield from found or of_srun(text, file)


def _directives(text: str, file: str) -> Iterator[Request]:
    start = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.strip() and not line.startswith("#"):
            return
        if slurm := _SLURM.match(line):
            yield from _options(slurm[1], start + slurm.start(1), Place(file, number, "#SBATCH"), "Slurm's sbatch")
        elif lsf := _LSF.match(line):
            yield from _keys(_LSF_KEYS, _LSF_KIND, lsf, start, Place(file, number, "#BSUB"))
        elif pbs := _PBS.match(line):
            yield from _keys(_PBS_KEYS, _PBS_KIND, pbs, start, Place(file, number, "#PBS"))
        start += len(line)


def _options(options: str, start: int, place: Place, scheduler: str) -> Iterator[Request]:
    comment = re.search(r"(?<!\S)#", options)
    for found in _OPTION.finditer(options[: comment.start()] if comment else options):
        option, value, at = found[1] or found[2], found[4], start + found.start(4)
        what = _MEANINGS.get(option)
        if what is None:
            continue
        where = place._replace(key=f"{place.key} {option}")
        if what not in _OF_GPUS:
            yield Request(where, value, what, "", scheduler, at)
            continue
        items = [item for item in value.split(",") if option != "--gres" or re.match(r"gpu(:|$)", item)]
        if len(items) == 1:
            yield _gpus(items[0], at + value.index(items[0]), Request(where, "", what, "", scheduler))
        elif items:
            yield Request(where, value, what, "", scheduler)


def _gpus(item: str, start: int, request: Request) -> Request:
    """The count and the type in ``gpu:a100:4``, ``a100:4``, ``4`` or ``gpu``, which is one."""
    item_without = re.sub(r"\(.*\)$", "", item)
    kinds = item_without.split(":")
    kinds = kinds[1:] if kinds[0] == "gpu" else kinds
    count = kinds.pop() if kinds and kinds[-1][:1].isdecimal() and not re.search(r"[a-z]", kinds[-1]) else ""
    at = start + len(item_without) - len(count) if count else None
    return request._replace(number=count or "1", kind=kinds[0] if kinds else "", start=at)


def _keys(
    keys: Sequence[Any], kind: re.Pattern[str], line: re.Match[str], start: int, place: Place
) -> Iterator[Request]:
    named = kind.search(line[1])
    scheduler = LSF if place.key == "#BSUB" else "PBS' qsub"
    for pattern, what, option in keys:
        if found := pattern.search(line[1]):
            of = named[1] if named and what in _OF_GPUS else ""
            at = start + line.start(1) + found.start(1)
            yield Request(place._replace(key=f"{place.key} {option}"), found[1], what, of, scheduler, at)


def of_srun(text: str, file: str) -> Iterator[Request]:
    """Find the counts among the options of ``srun``."""
    for found in _SRUN.finditer(text):
        line_start = text.rfind("\n", 0, found.start(1)) + 1
        if text[line_start : found.start(1)].lstrip().startswith("#"):
            continue
        number = text.count("\n", 0, found.start(1)) + 1
        yield from _options(
            re.sub(r"[\\\n]", " ", found[1]), found.start(1), Place(file, number, "srun"), "Slurm's srun"
        )


def allocated(requests: Sequence[Request]) -> Allocation:
    """What requests amount to together.

    >>> requests = list(requested("#SBATCH -N 2 --gpus-per-node=a100:4\\n", "job.sbatch"))
    >>> allocated(requests)
    Allocation(nodes=2, gpus_per_node=4, gpus=8, tasks=None)
    """
    stated: dict[str, set[str]] = {}
    for request in requests:
        stated.setdefault(request.what, set()).add(request.number)
    if any(len(numbers) > 1 or not min(numbers).isdecimal() or int(min(numbers)) < 1 for numbers in stated.values()):
        return Allocation()
    count = {what: int(*numbers) for what, numbers in stated.items()}
    tasks, on_each = count.get(TASKS), count.get(TASKS_PER_NODE)
    nodes = count.get(NODES)
    if nodes is None and tasks and on_each:
        nodes = -(-tasks // on_each)
    if nodes is None and PER_NODE in count and (tasks or 1) == 1:
        nodes = 1
    if on_each is None and tasks and nodes and tasks % nodes == 0:
        on_each = tasks // nodes
    per_node = count.get(PER_NODE)
    if per_node is None and PER_TASK in count and (on_each or tasks is None):
        per_node = count[PER_TASK] * (on_each or 1)
        nodes = nodes or 1
    if per_node is None and GPUS in count and nodes and count[GPUS] % nodes == 0:
        per_node = count[GPUS] // nodes
    of_tasks = count[PER_TASK] * tasks if PER_TASK in count and tasks else None
    gpus = count.get(GPUS) or (per_node and nodes and per_node * nodes) or of_tasks
    if per_node and nodes and gpus != per_node * nodes:
        return Allocation()
    return Allocation(nodes, per_node, gpus, tasks or (on_each and nodes and on_each * nodes))


def environment(requests: Sequence[Request]) -> dict[str, str]:
    """The variables that Slurm sets for a script with these requests.

    >>> environment(list(requested("#SBATCH --nodes=2 --gpus-per-node=4\\n", "job.sbatch")))["SLURM_NNODES"]
    '2'
    """
    if not any(request.scheduler.startswith("Slurm") for request in requests):
        return {}
    found = allocated(requests)
    options = {request.place.key.rpartition(" ")[2]: request for request in requests}
    values = {
        "SLURM_NNODES": found.nodes,
        "SLURM_JOB_NUM_NODES": found.nodes,
        "SLURM_GPUS_ON_NODE": found.gpus_per_node,
        "SLURM_NTASKS": found.tasks,
        "SLURM_NPROCS": found.tasks,
    }
    for option, name in (
        ("--gpus-per-node", "SLURM_GPUS_PER_NODE"),
        ("--gpus", "SLURM_GPUS"),
        ("-G", "SLURM_GPUS"),
        ("--ntasks-per-node", "SLURM_NTASKS_PER_NODE"),
        ("--gpus-per-task", "SLURM_GPUS_PER_TASK"),
    ):
        request = options.get(option)
        if request is not None and not request.kind and request.number.isdecimal():  # with a type it is a100:4
            values[name] = int(request.number)
    return {name: str(value) for name, value in values.items() if value}
