"""Jobs as people already have them in files, told from their content: read into one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import NotDocuments, load_documents, read_text
from autoconf.jobs.importers.key_table import Said, job_keys, settings
from autoconf.jobs.importers.kubernetes import is_manifest, read_manifest
from autoconf.jobs.importers.shell import launch_in_script
from autoconf.jobs.importers.translate import JobFile, job_of
from autoconf.jobs.job import read

# Keys whose value is another file, which lies beside the one that names it, and the dialects that it may have.
_NAMING = {
    ("accelerate", "config_file"): ("accelerate", "fsdp"),
    ("arguments", "accelerate_config"): ("accelerate", "fsdp"),
    ("arguments", "config"): ("arguments",),
    ("axolotl", "config"): ("axolotl",),
}


class _Content(NamedTuple):
    """What one file says, and what trains, where it tells."""

    said: list[Said]
    frameworks: tuple[str, ...] = ()


def read_job(paths: Sequence[str], options: Mapping[str, Any]) -> JobFile:
    """Read the job that files describe together.

    Args:
        paths: files with an accelerate config, arguments of TRL or the Trainer, an axolotl config (YAML or JSON), a
            command line, or a manifest of a ``PyTorchJob`` or ``TrainJob``.
        options: fields of the job that are given otherwise: they win, and what files say of them is not read.

    Raises:
        BadInput: a file cannot be read, or something in it that matters; the message names file, key and value.
    """
    try:
        options = {field: read(field, value) for field, value in options.items()}
    except ValueError as error:
        raise BadInput(str(error)) from None
    contents = [_content(path) for path in paths]
    said = []
    for path, content in zip(paths, contents, strict=True):
        others = [thing for other in contents if other is not content for thing in other.said]
        said += list(_with_named_files(content.said, path, others))
    return job_of(said, _framework(said, {name for content in contents for name in content.frameworks}), options)


def _content(path: str) -> _Content:
    return _content_of(read_text(path), path)


def _content_of(text: str, path: str) -> _Content:
    problem = "neither settings nor a command that starts a training"
    try:
        documents = [document.value for document in load_documents(text, path)]
    except NotDocuments as error:
        documents, problem = [], f"{problem} ({error})"
    if is_manifest(documents):
        manifest = read_manifest(documents, path)
        said = [*manifest.said, *(thing for launch in manifest.launches for thing in launch.said)]
        return _Content(said, tuple(launch.framework for launch in manifest.launches if launch.framework))
    if len(documents) == 1 and isinstance(documents[0], dict):
        dialect = _dialect(documents[0])
        return _Content(list(settings(f"{path}, ", dialect, documents[0])), ("axolotl",) * (dialect == "axolotl"))
    launch = launch_in_script(text, lambda option: f"{path}: {option}" if option else path, {})
    if launch is None:
        raise BadInput(f"{path}: {problem}")
    return _Content(launch.said, (launch.framework,) if launch.framework else ())


def _dialect(document: Mapping[Any, Any]) -> str:
    """Whose settings these are."""
    keys = {str(key) for key in document}
    nested = {f"{key}.{inner}" for key, value in document.items() if isinstance(value, Mapping) for inner in value}
    for name, dialect in job_keys().dialects.items():
        if any(sign in keys for sign in dialect.signs):
            return name
    known = job_keys().dialects["arguments"]
    if any(known.find(key) or known.ignores(key) for key in keys):
        return "arguments"
    return "accelerate" if any(sign in nested for sign in job_keys().dialects["accelerate"].signs) else "arguments"


def _with_named_files(said: Sequence[Said], path: str, others: Sequence[Said]) -> Iterator[Said]:
    """What a file says, and what files say that it names; where both say something, the naming one is right."""
    spoken = {(thing.dialect, thing.key) for thing in said}
    for thing in said:
        dialects = _NAMING.get((thing.dialect, thing.key), ())
        if not dialects or not isinstance(thing.value, str) or not Path(thing.value).suffix:
            yield thing  # a name without a suffix is of something that the project brings
            continue
        beside = Path(path).parent / Path(thing.value).name
        if not beside.is_file():
            if not any(other.dialect in dialects for other in others):
                raise BadInput(f"{thing.where}: {thing.value!r}: no such file beside {path}; give it by --job")
            continue
        named = _content(str(beside)).said
        if wrong := next((other for other in named if other.dialect not in dialects), None):
            raise BadInput(f"{thing.where}: {thing.value!r}: must be {dialects[0]} settings, has {wrong.key}")
        yield from (other for other in named if (other.dialect, other.key) not in spoken)


def _framework(said: Sequence[Said], told: set[str]) -> str | None:
    """What trains: by a command or a kind of file, or by the signs among the arguments."""
    if len(told) > 1:
        raise BadInput(f"these files are of {' and '.join(sorted(told))}; one job trains with one")
    if told:
        return next(iter(told))
    keys = {thing.key for thing in said if thing.dialect == "arguments"}
    if not keys:
        return None
    frameworks = job_keys().frameworks
    signs = {name: sum(sign in keys for sign in known.signs) for name, known in frameworks.items()}
    # Arguments of fms-hf-tuning have some of TRL's, not the reverse.
    first = "fms-hf-tuning" if signs["fms-hf-tuning"] else max(signs, key=lambda name: signs[name])
    return first if signs[first] else "transformers"
