"""Implement ``recommend --job``: read a job from existing files, and patch the manifest with the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.cli.options import note
from autoconf.cli.output import output
from autoconf.jobs.importers.key_table import Place
from autoconf.planner.job_files import FromFiles, complete_job, patch_job

NOTHING_TO_PATCH = 3  # exit code without a recommendation, so that no pipe applies an empty manifest


def job_from_files(paths: Sequence[str], options: Mapping[str, Any]) -> FromFiles:
    """Read a job from files, override it with options, and write notes about what was read.

    Raises:
        BadInput: A required setting cannot be read or is missing.
    """
    found = complete_job(paths, options)
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


def write_patched(
    paths: Sequence[str], job: Mapping[str, Any], answer: Mapping[str, Any], output_file: str | None
) -> int:
    """Write the file that sets the number of GPUs, patched with the answer, and note the effect on the global batch.

    Args:
        paths: Files of the job.
        job: The fields from files and options.
        answer: One row of ``recommend``.
        output_file: The file to write; by default standard output.

    Returns:
        The exit code: 0, or 3 without a recommendation, when only the reason is noted.

    Raises:
        BadInput: No file sets the number of GPUs, or a number in it cannot be changed.
    """
    if not answer["can_recommend"]:
        note(f"no recommendation: {answer['reason']}")
        return NOTHING_TO_PATCH
    patch = patch_job(paths, job, int(answer["gpus"]), int(answer["workers"]))
    for index, line in enumerate(patch.notes):
        note(line, first=index == 0)
    with output(output_file) as stream:
        stream.write(patch.data)
    return 0
