"""The number of GPUs that a job's files request: of a manifest, a scheduler, and the launcher."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.jobs.importers.documents import Document, Path, dotted
from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.pods import GPU, KINDS, RUNTIMES, Pods, at, kind_of, mapping, pods_of, resources_of
from autoconf.jobs.importers.schedulers import Allocation, Request, allocated
from autoconf.jobs.importers.words import described

_ALL = ("auto", "gpu")  # as many processes as a node has GPUs
# Values of Kubeflow's variables, which follow from the manifest.
_OF_KUBEFLOW = re.compile(r"\$[({]*PET_(NNODES|NPROC_PER_NODE)\b(?!.*[-+/])")
_SPAWN_ALL = ("accelerate", "deepspeed", "trl", "axolotl", "llama-factory")  # a process for each GPU, by default
# Options of deepspeed, in full and as a letter.
_INCLUDES, _EXCLUDES, _HOSTFILES = ("include", "i"), ("exclude", "e"), ("hostfile", "H")
VISIBLE = "CUDA_VISIBLE_DEVICES"
COUNTING = (
    "num_processes", "num_machines", "nproc_per_node", "nnodes", "num_gpus", "num_nodes", "NPROC_PER_NODE", "NNODES",
    VISIBLE,
)  # fmt: skip


class Count(NamedTuple):
    """A setting that counts GPUs, nodes or processes."""

    place: Place
    value: Any
    rule: str

    def record(self) -> dict[str, Any]:
        """The count as columns: value, file, line, key and rule."""
        file, line, key = self.place
        return {"value": self.value, "file": file, "line": line, "key": key, "rule": self.rule}


class Counted(NamedTuple):
    """The GPUs of a job.

    Attributes:
        gpus: GPUs over all workers; ``None`` if this is not certain.
        workers: The number of workers (nodes); ``None`` if this is not certain.
        problem: Why the counts are not certain.
        sources: The settings that count, besides the requests to a scheduler.
    """

    gpus: int | None = None
    workers: int | None = None
    problem: str = "no file counts GPUs"
    sources: tuple[Count, ...] = ()

    @property
    def per_worker(self) -> int | None:
        """GPUs of each worker."""
        if self.gpus is None or self.workers is None or self.gpus % self.workers:
            return None
        return self.gpus // self.workers


class _Uncertain(Exception):
    """The counts contradict each other, or cannot be read."""


class Object(NamedTuple):
    """A Kubernetes object in a file."""

    file: str
    document: Document

    @property
    def value(self) -> Mapping[str, Any]:
        return mapping(self.document.value)

    def count_at(self, path: Path) -> Count:
        """The count at a path."""
        line = self.document.closest_line(*path)
        return Count(Place(self.file, line, dotted(path)), at(self.value, path), f"{self.value.get('kind')}'s count")


def counted(settings: Iterable[Setting], requests: Sequence[Request], objects: Sequence[Object]) -> Counted:
    """Count the GPUs of a job.

    Args:
        settings: The settings of its files.
        requests: What its scripts request from a scheduler.
        objects: Its Kubernetes objects.

    >>> from autoconf.jobs.importers.schedulers import requested
    >>> counted([], list(requested("#SBATCH -N 2 --gpus-per-node=4", "a.sbatch")), []).problem
    'no file says how many processes run on the 8 GPUs'
    """
    jobs = [each for each in objects if kind_of(each.value) in KINDS]
    runtimes = [each for each in objects if kind_of(each.value) in RUNTIMES]
    launcher = _Launcher(list(settings))
    sources = launcher.sources()
    try:
        reserved = _of_object(jobs[0], runtimes) if jobs else _of_requests(requests)
        found = launcher.counted(reserved, bool(jobs))
    except _Uncertain as uncertain:
        return Counted(problem=str(uncertain), sources=sources)
    return found._replace(sources=(*reserved.sources, *sources))


class _Reserved(NamedTuple):
    """GPUs that a manifest or a scheduler reserves."""

    allocation: Allocation
    because: str
    sources: tuple[Count, ...] = ()


def _of_requests(requests: Sequence[Request]) -> _Reserved:
    places = ", ".join(dict.fromkeys(str(request.place) for request in requests))
    found = allocated(requests)
    if requests and found == Allocation():
        raise _Uncertain(f"the requests of {places} cannot be read together")
    return _Reserved(found, places)


class _Group(NamedTuple):
    """Pods with GPUs."""

    number: int
    gpus: int
    sources: tuple[Count, ...]


def _of_object(job: Object, runtimes: Sequence[Object]) -> _Reserved:
    if kind_of(job.value) == "TrainJob":
        groups = _of_trainjob(job, runtimes)
    else:
        groups = [
            _Group(_pods(job.value, pods), gpus, _sources(job, pods))
            for pods in pods_of(job.value)
            if (gpus := _gpus(job.value, pods))
        ]
    groups = [group for group in groups if group.number]
    if not groups:
        return _Reserved(Allocation(), "")
    each = {group.gpus for group in groups}
    if len(each) > 1:
        raise _Uncertain(f"{job.file}: pods have {' and '.join(map(str, sorted(each)))} {GPU}")
    nodes = sum(group.number for group in groups)
    if nodes > 1 and kind_of(job.value) == "Job" and at(job.value, ("spec", "completionMode")) != "Indexed":
        raise _Uncertain(f"{job.file}: pods of a Job that is not Indexed do not know each other, so each trains alone")
    (per_node,) = each
    sources = tuple(source for group in groups for source in group.sources)
    because = ", ".join(dict.fromkeys(str(source.place) for source in sources))
    return _Reserved(Allocation(nodes, per_node, nodes * per_node), because, sources)


def _of_trainjob(job: Object, runtimes: Sequence[Object]) -> list[_Group]:
    """The pods of a ``TrainJob``; what it does not set is that of its runtime."""
    (pods,) = pods_of(job.value)
    name = at(job.value, ("spec", "runtimeRef", "name"))
    runtime = next((each for each in runtimes if at(each.value, ("metadata", "name")) == name), None)
    if runtime is None and runtimes:
        raise _Uncertain(f"{job.file}: the runtime {described(str(name))} is not among those that --job gives")
    nodes, gpus = at(job.value, pods.counts[0]), _gpus(job.value, pods)
    if runtime is None and (nodes is None or gpus is None):
        missing = "numNodes" if gpus is not None else "resourcesPerNode"
        raise _Uncertain(f"{job.file}: a TrainJob without {missing} has that of its runtime; give the runtime by --job")
    sources = _sources(job, pods)
    if runtime is not None and nodes is None:
        path = ("spec", "mlPolicy", "numNodes")
        nodes, sources = at(runtime.value, path), (*sources, runtime.count_at(path))
    if runtime is not None and gpus is None:
        found = {count: other for other in pods_of(runtime.value) if (count := _gpus(runtime.value, other))}
        if len(found) != 1:
            raise _Uncertain(f"{runtime.file}: {len(found)} kinds of pods have {GPU}")
        ((gpus, other),) = found.items()
        sources = (*sources, *_sources(runtime, other))
    return [_Group(_whole(1 if nodes is None else nodes, "numNodes"), gpus or 0, sources)]


def _sources(job: Object, pods: Pods) -> tuple[Count, ...]:
    """The counts of pods and of their GPUs."""
    paths = [*pods.counts, *_gpu_paths(job.value, pods)]
    return tuple(job.count_at(path) for path in paths if at(job.value, path) is not None)


def _pods(job: Mapping[str, Any], pods: Pods) -> int:
    values = [(at(job, path), dotted(path)) for path in pods.counts]
    *units, last = [1 if value is None else _whole(value, name) for value, name in values] or [1]
    return math.prod(units) * max(last - pods.others, 0)


def _gpu_paths(job: Mapping[str, Any], pods: Pods) -> list[Path]:
    """The paths of the GPUs of the containers of a pod."""
    containers = at(job, (*pods.template, "containers"))
    paths = [(*pods.template, "containers", i) for i in range(len(containers))] if isinstance(containers, list) else []
    holders = [pods.template] if kind_of(job) == "TrainJob" else paths
    return [(*resources_of(path), part, GPU) for path in holders for part in ("limits", "requests")]


def _gpus(job: Mapping[str, Any], pods: Pods) -> int | None:
    """The GPUs of one pod."""
    each: dict[Path, int] = {}
    for path in _gpu_paths(job, pods):
        value = at(job, path)
        if value is not None:
            each[path[:-2]] = max(each.get(path[:-2], 0), _whole(value, GPU))
    return sum(each.values()) or None


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise _Uncertain(f"{name}: {described(str(value))} is not a number")
    return int(value)


class _Launcher:
    """The processes that a launcher starts; options of a command come before the launcher's config."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._found: dict[str, Setting] = {}
        for setting in settings:
            if setting.dialect in ("accelerate", "environment") and setting.value is not None:
                before = self._found.setdefault(setting.key, setting)
                if "--" in setting.place.key and "--" not in before.place.key:
                    self._found[setting.key] = setting
        programs = [setting.value for setting in settings if setting.dialect == "launcher"]
        self._program = programs[0] if programs else ("accelerate" if "num_processes" in self._found else "")

    def _number(self, name: str) -> int | None:
        """The value of an option; ``None`` if it is absent or as many as there are GPUs."""
        setting = self._found.get(name)
        if setting is None or str(setting.value) in _ALL or _OF_KUBEFLOW.match(described(str(setting.value))):
            return None
        try:
            return _whole(setting.value, name)
        except _Uncertain as uncertain:
            raise _Uncertain(f"{setting.place}: {uncertain}") from None

    def _visible(self) -> int | None:
        """The number of GPUs of a node in CUDA_VISIBLE_DEVICES."""
        setting = self._found.get(VISIBLE)
        if setting is None:
            return None
        if not re.fullmatch(r"\d+(,\d+)*", str(setting.value)):
            raise _Uncertain(f"{setting.place}: {described(str(setting.value))} cannot be counted")
        return str(setting.value).count(",") + 1

    def counted(self, reserved: _Reserved, on_kubernetes: bool) -> Counted:
        """The GPUs of the processes, which are those that are reserved."""
        allocation = reserved.allocation
        workers, gpus = self._layout(allocation, on_kubernetes)
        if allocation.gpus is not None and gpus is not None and gpus != allocation.gpus:
            raise _Uncertain(
                f"{allocation.gpus} GPUs are reserved ({reserved.because}), and the launcher starts {gpus} processes"
                f"{self._places()}"
            )
        if workers and allocation.nodes and workers != allocation.nodes:
            raise _Uncertain(
                f"{allocation.nodes} nodes are reserved ({reserved.because}), and the launcher has {workers}"
                f"{self._places()}"
            )
        if gpus is None:
            if allocation.gpus is None:
                return Counted()
            raise _Uncertain(f"no file says how many processes run on the {allocation.gpus} GPUs")
        return Counted(gpus, workers or allocation.nodes or 1, "")

    def sources(self) -> tuple[Count, ...]:
        """The settings that count processes."""
        found = [self._found[name] for name in COUNTING if name in self._found]
        return tuple(Count(setting.place, setting.value, "the launcher's count") for setting in found)

    def _places(self) -> str:
        places = [str(source.place) for source in self.sources()]
        return f" ({', '.join(places)})" if places else ""

    def _layout(self, allocation: Allocation, on_kubernetes: bool) -> tuple[int | None, int | None]:
        """The number of workers, and of processes over all of them."""
        nodes, per_node = (allocation.nodes, allocation.gpus_per_node)
        match self._program:
            case "torchrun" | "tune":
                workers = self._number("nnodes") or (nodes if on_kubernetes else 1)
                default = per_node if on_kubernetes or self._is_all("nproc_per_node") else 1
                each = self._number("nproc_per_node") or default
                return workers, each and workers and each * workers
            case "deepspeed":
                return self._of_deepspeed(nodes, per_node)
            case "llama-factory" | "ms-swift":
                workers = self._number("NNODES") or nodes
                each = self._number("NPROC_PER_NODE") or self._visible() or per_node
                return workers, each and (workers or 1) * each
            case program if program in _SPAWN_ALL:
                return self._of_accelerate(nodes, per_node)
            case "tasks" if allocation.tasks and allocation.tasks == allocation.gpus:
                return nodes, allocation.tasks
            case "python" | "tasks" if allocation.gpus == 1 or self._visible() == 1:
                return 1, 1
        return (nodes, allocation.gpus) if on_kubernetes and self._program not in ("python", "tasks") else (None, None)

    def _of_deepspeed(self, nodes: int | None, per_node: int | None) -> tuple[int | None, int | None]:
        """The nodes of a hostfile or, without one, this node alone (deepspeed 0.19.8, launcher/runner.py, main)."""
        hosts = self._included()
        if hosts and any(hosts):
            return len(hosts), sum(hosts)
        workers = len(hosts) or self._number("num_nodes") or nodes
        if workers is None and (hostfile := next((self._found[n] for n in _HOSTFILES if n in self._found), None)):
            raise _Uncertain(f"{hostfile.place}: the file of hosts is not read, so the number of nodes is not certain")
        each = self._number("num_gpus") or self._visible() or per_node
        return workers or 1, each and each * (workers or 1)

    def _included(self) -> list[int]:
        """The GPUs of each host that ``--include`` names, such as ``worker-0@worker-1:0,2``; 0 where it names none."""
        if excluded := next((self._found[name] for name in _EXCLUDES if name in self._found), None):
            raise _Uncertain(f"{excluded.place}: the GPUs that it leaves are not certain")
        setting = next((self._found[name] for name in _INCLUDES if name in self._found), None)
        hosts = "" if setting is None else described(str(setting.value))
        if setting is None or not hosts:
            return []
        if not re.fullmatch(r"([\w.-]+(:\d+(,\d+)*)?(@|$))+", hosts):
            raise _Uncertain(f"{setting.place}: {hosts} cannot be counted")
        each = [
            len(slots.split(",")) if slots else 0 for _, _, slots in (host.partition(":") for host in hosts.split("@"))
        ]
        if len(set(each)) > 1:
            raise _Uncertain(f"{setting.place}: {hosts} has hosts with another number of GPUs")
        return each

    def _of_accelerate(self, nodes: int | None, per_node: int | None) -> tuple[int | None, int | None]:
        workers, processes = self._number("num_machines"), self._number("num_processes")
        if processes is None:
            each = self._visible() or per_node
            if (workers or nodes or 1) > 1:
                raise _Uncertain("several nodes without num_processes: how many processes run is not certain")
            return workers or nodes, each and (workers or nodes or 1) * each
        if processes % (workers or 1):
            raise _Uncertain(f"num_processes {processes} is not a multiple of num_machines {workers}{self._places()}")
        return workers, processes

    def _is_all(self, name: str) -> bool:
        return name in self._found and str(self._found[name].value) in _ALL
