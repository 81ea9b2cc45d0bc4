"""Plan the changes of the counts of a task of SkyPilot: its accelerators, its nodes, and those of its launcher."""

from __future__ import annotations

import re

from autoconf.jobs.importers.documents import Document, Path, shortened
from autoconf.jobs.importers.gpu_counts import Layout, Plan, script_count
from autoconf.jobs.importers.gpus_of_job import counted
from autoconf.jobs.importers.schedulers import NODES, PER_NODE, Request
from autoconf.jobs.importers.script_patch import Reading, patch_script
from autoconf.jobs.importers.skypilot import launch_of_run, read_task

_ACCELERATORS = re.compile(r"([\w.-]+)(?::(\d+))?")


def plan_task(plan: Plan, task: Path) -> None:
    """Plan the changes of a task.

    Args:
        plan: The plan for its file.
        task: The path of the task in the file.

    Raises:
        BadInput: A count cannot be changed, or is missing.
    """
    document = plan.documents[int(task[0])]
    nodes = (*task, "num_nodes")
    plan.set_unless_default(nodes, plan.layout.workers)
    workers = 1 if plan.get(nodes) is None else plan.number(nodes)
    old = Layout(_accelerators(plan, (*task, "resources", "accelerators")), workers)
    plan.gpus_before = old.gpus * old.workers
    run, path = str(plan.get((*task, "run"))), (*task, "run")
    if read_task(document, plan.file).launch is not None:
        changed = _Run(plan, document, old).patched(run)
        if changed != run:
            plan.changes[path] = changed
    elif count := script_count(run):
        plan.refuse(
            path, f"{shortened(count[1])!r} counts GPUs in a command that is not read; --patch does not change it"
        )


def _accelerators(plan: Plan, path: Path) -> int:
    """Plan the number of accelerators of a node; return how many there are now."""
    value = plan.get(path)
    if isinstance(value, dict) and len(value) == 1:
        (kind,) = value
        plan.set((*path, kind), plan.layout.gpus)
        return plan.number((*path, kind))
    found = _ACCELERATORS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        plan.refuse(path, f"{shortened(str(value))!r}: --patch changes one type of accelerator with its count alone")
    plan.changes[path] = f"{found[1]}:{plan.layout.gpus}"
    return int(found[2] or 1)


class _Run:
    """The commands of a task."""

    def __init__(self, plan: Plan, document: Document, old: Layout) -> None:
        self._plan, self._document, self._old = plan, document, old

    def patched(self, run: str) -> str:
        return patch_script(run, self._plan.file, self._plan.layout, self._read).text

    def _read(self, run: str, is_changed: bool) -> Reading | None:
        layout = self._plan.layout if is_changed else self._old
        launch = launch_of_run(self._document, run, self._plan.file, layout.gpus, layout.workers)
        if launch is None:
            return None
        place = next(setting.place for setting in launch.settings)
        requests = [
            Request(place, str(layout.gpus), PER_NODE, "", "SkyPilot's task"),
            Request(place, str(layout.workers), NODES, "", "SkyPilot's task"),
        ]
        return Reading(launch, [], [], counted(launch.settings, requests, []))
