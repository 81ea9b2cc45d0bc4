"""The GPUs and nodes that the ``#SBATCH`` lines of a script request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Place

_LINE = re.compile(r"#SBATCH\s+(?P<options>.*)")
_OPTION = re.compile(r"(--[\w-]+|-[NGn])(?:[=\s]+)([^\s#]+)")
_MEANINGS = {
    "--gres": "GPUs per node", "--gpus-per-node": "GPUs per node", "--gpus": "GPUs", "-G": "GPUs", "--nodes": "nodes",
    "-N": "nodes", "--gpus-per-task": "GPUs per task", "--ntasks-per-node": "tasks per node",
}  # fmt: skip


def requested(text: str, file: str) -> Iterator[str]:
    """What a script requests from Slurm, a sentence for each option that counts GPUs or nodes.

    >>> list(requested("#!/bin/bash\\n#SBATCH --gres=gpu:a100:4\\n", "job.sbatch"))
    ['job.sbatch:2 #SBATCH --gres: 4 GPUs per node (a100) are requested']
    """
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.match(line)
        for option, value in _OPTION.findall(found["options"]) if found else ():
            if option not in _MEANINGS or (option == "--gres" and not value.startswith("gpu")):
                continue
            *kinds, count = value.removeprefix("gpu:").split(":")
            kind = f" ({shortened(kinds[0])})" if kinds else ""
            place = Place(file, number, f"#SBATCH {option}")
            yield f"{place}: {shortened(count)} {_MEANINGS[option]}{kind} are requested"
