"""Implement ``recommend --patch``: write the manifest, config or script with the counts of GPUs of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.cli.options import ExitCode, note
from autoconf.cli.output import output
from autoconf.jobs.importers.patch import OtherCounts
from autoconf.planner.job_files import FromFiles, patch_job


def write_patched(
    paths: Sequence[str],
    job: FromFiles,
    answer: Mapping[str, Any],
    output_file: str | None,
    nodes_only: bool = False,
) -> int:
    """Write the file that sets the number of GPUs, patched with the answer, and note the effect on the global batch.

    Args:
        paths: Files of the job.
        job: The job from files and options.
        answer: One row of ``recommend``.
        output_file: The file to write; by default standard output.
        nodes_only: Whether only counts of nodes may change.

    Returns:
        The exit code: 0, or 3 without a recommendation or if another count would have to change, when only the reason
        is noted.

    Raises:
        BadInput: No file sets the number of GPUs, or a number in it cannot be changed.
    """
    if not answer["can_recommend"]:
        note(f"no recommendation: {answer['reason']}")
        return ExitCode.NOTHING_TO_PATCH
    try:
        patch = patch_job(paths, job, int(answer["gpus"]), int(answer["workers"]), nodes_only)
    except OtherCounts as error:
        note(str(error))
        return ExitCode.NOTHING_TO_PATCH
    for index, line in enumerate(patch.notes):
        note(line, first=index == 0)
    with output(output_file) as stream:
        stream.write(patch.data)
    return 0
