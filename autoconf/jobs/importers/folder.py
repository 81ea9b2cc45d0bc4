"""Find the files of a job in a folder: the launcher, or else the config or the script that describes a training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import MAX_BYTES, Document, NotDocuments, load_documents, read_text
from autoconf.jobs.importers.evidence import dialect_of
from autoconf.jobs.importers.key_table import Place
from autoconf.jobs.importers.kubernetes import is_runtime
from autoconf.jobs.importers.launchers import Launch, launch_in_script
from autoconf.jobs.importers.notebooks import code_of
from autoconf.jobs.importers.pods import KINDS, at, kind_of
from autoconf.jobs.importers.python_code import read_code
from autoconf.jobs.importers.skypilot import is_task
from autoconf.jobs.importers.words import cleaned

_SCRIPTS = (".sh", ".bash", ".sbatch", ".slurm", ".job", ".lsf", ".pbs")
_DOCUMENTS = (".yaml", ".yml", ".json")
_CODE = (".py", ".ipynb")
_MOST_FILES = 2_000
_DEEPEST = 4
_MOST_SHOWN = 10
_LAUNCHES = re.compile(
    r"^(?!\s*#).*\b(accelerate\s+launch|torchrun|deepspeed|trl\s+\w|axolotl\s|llamafactory-cli|lmf\s+train)",
    re.MULTILINE,
)


class Found(NamedTuple):
    """The files of a job in a folder.

    Attributes:
        paths: The files, the launcher first.
        why: What the first one is.
    """

    paths: tuple[str, ...]
    why: str


class _Kinds(NamedTuple):
    launchers: list[tuple[str, Launch | None]]
    runtimes: list[tuple[str, str]]  # path, and name of the runtime
    trainers: list[str]  # configs of trainers
    launches: list[str]  # configs of launchers
    code: list[str]


def files_in(folder: str) -> Found:
    """Find the files of the one job in a folder.

    Raises:
        BadInput: There is no job, or more than one; the message lists the files.
    """
    kinds = _Kinds([], [], [], [], [])
    for path in _files(folder):
        _classify(path, kinds)
    if kinds.launchers:
        called = {Path(each).resolve() for _, launch in kinds.launchers if launch for each in launch.called}
        launchers = [each for each in kinds.launchers if Path(each[0]).resolve() not in called]
        (path, launch), *_ = launchers or kinds.launchers
        _one([each for each, _ in launchers], folder, "files start a training")
        return Found((path, *_named_by(path, launch, kinds)), "the launcher")
    if kinds.trainers:
        _one(kinds.trainers, folder, "configs of a trainer")
        if len(kinds.launches) > 1:
            _one(kinds.launches, folder, "configs of a launcher")
        return Found((*kinds.trainers, *kinds.launches), "the only config of a trainer")
    if kinds.code:
        _one(kinds.code, folder, "scripts describe a training")
        return Found((*kinds.code, *kinds.launches[: len(kinds.launches) == 1]), "the only script of a training")
    raise BadInput(f"{folder}: no file in it starts or describes a training; give its files by --job")


def _one(paths: list[str], folder: str, what: str) -> None:
    if len(paths) > 1:
        shown = ", ".join(paths[:_MOST_SHOWN])
        more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
        raise BadInput(f"{folder}: {len(paths)} {what}: {shown}{more}; give one of them by --job")


def _files(folder: str) -> Iterator[str]:
    """The files that may belong to a job, in order; hidden ones and links to folders are left out."""
    number = 0
    for parent, folders, names in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(each for each in folders if not each.startswith((".", "__"))) if depth < _DEEPEST else []
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or path.suffix not in ("", *_SCRIPTS, *_DOCUMENTS, *_CODE):
                continue
            number += 1
            if number > _MOST_FILES:
                raise BadInput(f"{folder}: more than {_MOST_FILES:,} files; give those of the job by --job")
            if path.is_file() and path.stat().st_size <= MAX_BYTES:
                yield str(path)


def _classify(path: str, kinds: _Kinds) -> None:
    suffix = Path(path).suffix
    try:
        text = read_text(path)
        if suffix in _SCRIPTS or (not suffix and text.startswith("#!")):
            _classify_script(path, text, kinds)
        elif suffix in _CODE:
            _classify_code(path, text, kinds)
        elif suffix:
            _classify_documents(path, load_documents(text, path), kinds)
    except (BadInput, NotDocuments):  # belongs to something else
        return


def _classify_script(path: str, text: str, kinds: _Kinds) -> None:
    try:
        launch = launch_in_script(cleaned(text), partial(Place, path, None), {}, 1)
    except BadInput:
        if _LAUNCHES.search(text):
            kinds.launchers.append((path, None))
        return
    if launch is not None:
        kinds.launchers.append((path, launch))


def _classify_code(path: str, text: str, kinds: _Kinds) -> None:
    if Path(path).suffix == ".ipynb":
        (document,) = load_documents(text, path)
        text = code_of(document.value)
    if read_code(text, path).settings:
        kinds.code.append(path)


def _classify_documents(path: str, documents: list[Document], kinds: _Kinds) -> None:
    if any(kind_of(document.value) in KINDS for document in documents):
        kinds.launchers.append((path, None))
    elif is_runtime(documents):
        kinds.runtimes.extend((path, str(at(document.value, ("metadata", "name")))) for document in documents)
    elif len(documents) == 1 and isinstance(documents[0].value, dict) and "kind" not in documents[0].value:
        if is_task(documents[0].value):
            kinds.launchers.append((path, None))
            return
        dialect = dialect_of(documents[0].value, path)
        (kinds.launches if dialect == "accelerate" else kinds.trainers).append(path)


def _named_by(path: str, launch: Launch | None, kinds: _Kinds) -> list[str]:
    """The files that a launcher names and that reading it does not find by itself."""
    if launch is None:
        names = [at(d.value, ("spec", "runtimeRef", "name")) for d in _documents(path)]
        return [runtime for runtime, name in kinds.runtimes if name in names]
    has_arguments = any(setting.dialect not in ("launcher", "accelerate", "environment") for setting in launch.settings)
    script = Path(path).parent / launch.script
    return [] if has_arguments else [each for each in kinds.code if Path(each) == script]


def _documents(path: str) -> list[Document]:
    try:
        return load_documents(read_text(path), path)
    except NotDocuments:
        return []
