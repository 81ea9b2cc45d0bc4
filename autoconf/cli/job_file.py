"""Read the job of a command from the files of ``--job``, with notes about what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.cli.options import note
from autoconf.jobs.importers.key_table import Place
from autoconf.jobs.queries import Query
from autoconf.planner.job_files import FromFiles, complete_job


def job_from_files(paths: Sequence[str], options: Mapping[str, Any], query: Query) -> FromFiles:
    """Read a job from files, override it with options, and write notes about what was read.

    Raises:
        BadInput: A required setting cannot be read or is missing.
    """
    found = complete_job(paths, options, query)
    for line in found.notes:
        note(line)
    return found


def provenance_cells(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Convert settings that were read, assumed or unknown to text for the cells of a table.

    >>> provenance_cells({"read": [{"value": 8, "file": "a.yaml", "line": 3, "key": "lora_r"}], "assumed": ["a", "b"]})
    {'read': 'a.yaml:3 lora_r: 8', 'assumed': 'a; b'}
    """
    return {
        name: value if isinstance(value, str) else "; ".join(map(_in_cell, value)) for name, value in provenance.items()
    }


def _in_cell(item: Any) -> str:
    if isinstance(item, str):
        return item
    return f"{Place(item['file'], item['line'], item['key'])}: {item['value']}"
