"""The GPUs and nodes that the ``#SBATCH`` lines of a script request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Place

_LINE = re.compile(r"#SBATCH\s+(?P<options>.*)")
_OPTION = re.compile(r"(--[\w-]+|-[NGn])(?:[=\s]+)([^\s#]+)")
_MEANINGS = {
    "--gres": "GPUs per node", "--gpus-per-node": "GPUs per node", "--gpus": "GPUs", "-G": "GPUs", "--nodes": "nodes",
    "-N": "nodes", "--gpus-per-task": "GPUs per task", "--ntasks-per-node": "tasks per node",
}  # fmt: skip
_GPUS = ("--gres", "--gpus-per-node", "--gpus", "-G", "--gpus-per-task")


class Request(NamedTuple):
    """A count that a script requests.

    Attributes:
        place: The option.
        number: The count, as written.
        what: The unit of the count.
        kind: The type of GPU; empty text if the option names none.
    """

    place: Place
    number: str
    what: str
    kind: str = ""

    def __str__(self) -> str:
        kind = f" ({shortened(self.kind)})" if self.kind else ""
        return f"{self.place}: {shortened(self.number)} {self.what}{kind} are requested"

    def record(self) -> dict[str, Any]:
        """The request as columns: value, file, line, key and rule."""
        file, line, key = self.place
        value = f"{self.kind}:{self.number}" if self.kind else self.number
        return {"value": value, "file": file, "line": line, "key": key, "rule": f"Slurm's sbatch: {self.what}"}


def requested(text: str, file: str) -> Iterator[Request]:
    """Find the requests of a script to Slurm: each option that counts GPUs or nodes.

    >>> list(map(str, requested("#!/bin/bash\\n#SBATCH --gres=gpu:a100:4\\n", "job.sbatch")))
    ['job.sbatch:2 #SBATCH --gres: 4 GPUs per node (a100) are requested']
    """
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.match(line)
        for option, value in _OPTION.findall(found["options"]) if found else ():
            if option not in _MEANINGS or (option == "--gres" and not value.startswith("gpu")):
                continue
            *kinds, count = value.removeprefix("gpu:").removeprefix("gpu").split(":")
            if option in _GPUS and not count[:1].isdecimal():  # --gres=gpu:a100 is one
                kinds, count = [*kinds, count] if count else kinds, "1"
            kind = kinds[0] if kinds and option in _GPUS else ""
            yield Request(Place(file, number, f"#SBATCH {option}"), count, _MEANINGS[option], kind)
