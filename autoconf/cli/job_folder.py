"""Find the files of a job in the folders that ``--job`` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoconf.cli.options import note
from autoconf.jobs.importers.folder import files_in


def job_paths(given: Sequence[str], quiet: bool = False) -> list[str]:
    """The files of a job, with those of a folder in its place; a note says which were taken.

    Raises:
        BadInput: A folder has no job, or several.
    """
    paths: list[str] = []
    for path in given:
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
