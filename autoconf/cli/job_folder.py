"""Find the files of a job in the folders that ``--job`` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoconf.cli.options import note
from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.importers.folder import files_in


def job_paths(given: Sequence[str], quiet: bool = False) -> list[str]:
    """The files of a job, with those of a folder in its place; a note says which were taken.

    Raises:
        BadInput: A folder has no job, or several; or the path is standard input.
    """
    paths: list[str] = []
    for path in given:
        if path == STANDARD_STREAM:  # a job is read again to patch it
            raise BadInput("--job: must be a file or a folder, because standard input can be read only once")
        try:
            is_folder = Path(path).is_dir()
        except ValueError:  # a path with a null character, which reading it refuses
            is_folder = False
        if not is_folder:
            paths.append(path)
            continue
        found = files_in(path)
        if not quiet:
            note(f"{path}: taken: {', '.join(found.paths)} ({found.why})")
        paths += found.paths
    return paths
