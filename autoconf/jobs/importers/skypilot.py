"""Read a task of SkyPilot: its command, and the GPUs and nodes that it requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import Document, Path
from autoconf.jobs.importers.key_table import Place
from autoconf.jobs.importers.launchers import Launch, launch_in_script
from autoconf.jobs.importers.pods import at, mapping
from autoconf.jobs.importers.schedulers import NODES, PER_NODE, Request, allocated
from autoconf.jobs.importers.words import cleaned

_ACCELERATORS: Path = ("resources", "accelerators")
_SCHEDULER = "SkyPilot's task"


class Task(NamedTuple):
    """What a task starts, if that is a training, and what it requests."""

    launch: Launch | None
    requests: tuple[Request, ...]


def is_task(document: Mapping[str, Any]) -> bool:
    """Whether settings are a task of SkyPilot.

    >>> is_task({"resources": {"accelerators": "H100:8"}, "run": "torchrun train.py"})
    True
    """
    return isinstance(document.get("run"), str) and isinstance(document.get("resources"), Mapping)


def read_task(document: Document, file: str) -> Task:
    """Read a task.

    Args:
        document: The task.
        file: Its file, for messages.

    Raises:
        BadInput: Its command starts more than one training, or is not bash.
    """
    requests = tuple(_requests(document, file))
    found = allocated(requests)
    return Task(launch_of_run(document, document.value["run"], file, found.gpus_per_node, found.nodes), requests)


def launch_of_run(document: Document, run: str, file: str, gpus: int | None, nodes: int | None) -> Launch | None:
    """The training that the commands of a task start on so many nodes.

    Args:
        document: The task.
        run: Its commands, or others in their place.
        file: Its file, for messages.
        gpus: GPUs of each node.
        nodes: Nodes.
    """
    counts = {"SKYPILOT_NUM_GPUS_PER_NODE": gpus, "SKYPILOT_NUM_NODES": nodes}
    given = {str(name): str(value) for name, value in mapping(document.value.get("envs")).items() if value is not None}
    variables = {**given, **{name: str(count) for name, count in counts.items() if count}}
    line = document.closest_line("run")

    def place(option: str) -> Place:
        return Place(file, line, f"run: {option}")

    return launch_in_script(cleaned(run), place, variables)


def _requests(document: Document, file: str) -> Iterator[Request]:
    value = at(document.value, _ACCELERATORS)
    place = Place(file, document.closest_line(*_ACCELERATORS), "resources.accelerators")
    items = [f"{kind}:{count}" for kind, count in value.items()] if isinstance(value, Mapping) else [value]
    if value is not None:
        found = re.fullmatch(r"([\w.-]+)(?::(\d+))?", str(items[0])) if len(items) == 1 else None
        if found and found[1].casefold().startswith("tpu"):
            raise BadInput(f"{place}: {found[1]}: TPUs are not covered")
        kind, number = (found[1], found[2] or "1") if found else ("", str(value))  # one of several is not certain
        yield Request(place, number, PER_NODE, kind, _SCHEDULER)
    nodes = document.value.get("num_nodes")
    if nodes is not None:
        yield Request(Place(file, document.closest_line("num_nodes"), "num_nodes"), str(nodes), NODES, "", _SCHEDULER)
