"""``ado-autoconf recommend --job``: a job from the files that people have, and the manifest for its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.cli.options import note
from autoconf.cli.output import output
from autoconf.jobs.importers.documents import read_text
from autoconf.jobs.importers.patch import Layout, patched
from autoconf.jobs.importers.reader import read_job

NOTHING_TO_PATCH = 3  # the exit code where there is no recommendation, so that no pipe applies an empty manifest


def job_from_files(paths: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the job in some files, with those that options give on top; what was read is noted.

    Raises:
        BadInput: something that matters cannot be read.
    """
    job = read_job(paths, options)
    for heading, lines in (
        ("read", job.read), ("assumed", job.assumed), ("ignored", job.ignored), ("not known here", job.unknown),
    ):  # fmt: skip
        for line in lines:
            note(f"{heading}: {line}")
    return {**job.fields, **options}


def write_patched(paths: Sequence[str], answer: Mapping[str, Any], output_file: str | None) -> int:
    """Write the one file among those of a job that counts GPUs, with the counts of the answer.

    Returns:
        The exit code: 0, or 3 where there is no recommendation, of which the reason is noted and nothing written.

    Raises:
        BadInput: there is no such file, or a count in it cannot be changed.
    """
    if not answer["can_recommend"]:
        note(f"no recommendation: {answer['reason']}")
        return NOTHING_TO_PATCH
    text = patched([(path, read_text(path)) for path in paths], Layout(answer["gpus"], answer["workers"]))
    with output(output_file) as stream:
        stream.write(text.encode("utf-8"))
    return 0
