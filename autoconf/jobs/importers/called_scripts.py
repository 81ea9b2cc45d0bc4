"""Scripts that a command of another script runs, in the folder of that script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autoconf.files import given_files, is_file
from autoconf.jobs.importers.words import is_unknown

SHELLS = {"bash", "sh", "zsh", "dash"}
SUFFIXES = (".sh", ".bash", ".sbatch", ".slurm", ".job", ".lsf", ".pbs")
# Programs that run the command behind them, and change nothing of it.
RUNNERS = {
    "srun", "uv", "uvx", "poetry", "pipenv", "conda", "micromamba", "mamba", "pixi", "hatch", "timeout", "env", "nohup",
    "time", "exec", "sudo", "nice", "ionice", "numactl", "taskset", "stdbuf", "docker", "podman", "singularity",
    "apptainer", "enroot", "command", "builtin", "nsys", "xvfb-run", "caffeinate", "setsid", "then", "do", "mpirun",
    "mpiexec", "kubectl", "screen", "unbuffer", "script", "ray", "jsrun", "ibrun", "blaunch",
}  # fmt: skip
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_ANCESTORS = 3  # folders above a script in which a relative path may start


class Call(NamedTuple):
    """A script that a command runs.

    Attributes:
        script: Its name.
        arguments: Its arguments.
        variables: The variables that the command sets for it.
    """

    script: str
    arguments: list[str]
    variables: Mapping[str, str]


def called(words: Sequence[str]) -> Call | None:
    """The script that a command runs; ``None`` if it runs none.

    >>> called(["srun", "--ntasks", "1", "bash", "-x", "train.sh", "8"])
    Call(script='train.sh', arguments=['8'], variables={})
    >>> called(["bash", "-c", "train.sh"]), called(["python", "convert.py", "train.sh"])
    (None, None)
    """
    variables: dict[str, str] = {}
    rest = [*words]
    while rest:
        name = rest[0].rpartition("/")[2]
        if assignment := _ASSIGNMENT.fullmatch(rest[0]):
            variables[assignment[1]] = assignment[2]
            rest = rest[1:]
        elif name in SHELLS:
            return _of_shell(rest[1:], variables)
        elif name.endswith(SUFFIXES) and not is_unknown(name):
            return Call(rest[0], rest[1:], variables)
        elif name in RUNNERS:
            rest = _behind(rest[1:])
        else:
            return None
    return None


def _of_shell(words: Sequence[str], variables: Mapping[str, str]) -> Call | None:
    """The script of a shell, after its options; one with ``-c`` has a text instead."""
    for i, word in enumerate(words):
        if re.fullmatch(r"-[a-z]*[cs]", word):
            return None
        takes_value = i > 0 and re.fullmatch(r"[-+][a-z]*[oO]", words[i - 1])
        if not word.startswith(("-", "+")) and not takes_value:
            return Call(word, [*words[i + 1 :]], variables)
    return None


def _behind(words: Sequence[str]) -> list[str]:
    """The words from the command that a runner starts."""
    for i, word in enumerate(words):
        name = word.rpartition("/")[2]
        is_value = i > 0 and words[i - 1].startswith("-") and "=" not in words[i - 1] and name in RUNNERS
        is_script = name.endswith(SUFFIXES) and not word.startswith("-") and not is_unknown(word)
        if (name in SHELLS | RUNNERS and not is_value) or is_script:
            return [*words[i:]]
    return []


def at_line(path: str) -> tuple[str, int | None]:
    """A file, and the line of a command in it where that follows its name, as in ``run.sh:21``."""
    found = re.fullmatch(r"(.+):(\d{1,6})", path)
    if found is None or is_file(Path(path)) or not is_file(Path(found[1])):
        return path, None
    return found[1], int(found[2])


def script_next_to(file: str, name: str) -> str | None:
    """The path of a script in the folder of another, or below it; ``None`` if it is elsewhere.

    A relative path may start in that folder, or above it, as where a script runs from the root of a project.
    """
    if is_unknown(name) or "$" in name:
        return None
    folder = Path(file).parent
    starts = [folder, *list(folder.absolute().parents)[:_ANCESTORS]] if given_files() is None else [folder]
    for start in starts:
        path = start / name
        try:
            inside = given_files() is not None or path.resolve().is_relative_to(folder.resolve())
            if inside and is_file(path):
                return str(path)
        except (OSError, ValueError):  # a name that is too long for a file
            return None
    return None
