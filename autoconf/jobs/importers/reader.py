"""Read one job from existing files, whose formats are recognized by their content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.axolotl_keys import together
from autoconf.jobs.importers.called_scripts import at_line
from autoconf.jobs.importers.documents import Document, NotDocuments, load_documents, read_text, shortened
from autoconf.jobs.importers.evaluation import larger_evaluation
from autoconf.jobs.importers.evidence import Command, dialect_of, evidence_of
from autoconf.jobs.importers.facts import of_deepspeed
from autoconf.jobs.importers.freeze import with_freeze
from autoconf.jobs.importers.gpus_of_job import Object, counted
from autoconf.jobs.importers.installed import defaults_of_release, older_releases
from autoconf.jobs.importers.key_table import Place, Setting, job_keys
from autoconf.jobs.importers.key_table import settings as settings_of
from autoconf.jobs.importers.kubernetes import is_manifest, is_runtime, missing_options, read_manifest
from autoconf.jobs.importers.launched_scripts import with_script
from autoconf.jobs.importers.launchers import NO_FILE, Launch, launch_in_script
from autoconf.jobs.importers.named_files import Sources, places_in, with_named_files
from autoconf.jobs.importers.notebooks import code_of
from autoconf.jobs.importers.objectives import with_objective
from autoconf.jobs.importers.other_files import PYTHON, nearest, text_kind
from autoconf.jobs.importers.python_asked import asked
from autoconf.jobs.importers.python_code import read_code
from autoconf.jobs.importers.schedulers import Request, environment, requested
from autoconf.jobs.importers.skypilot import is_task, read_task
from autoconf.jobs.importers.torchtune import recipe_settings
from autoconf.jobs.importers.translate import JobFile, job_of
from autoconf.jobs.importers.words import cleaned
from autoconf.jobs.job import read
from autoconf.jobs.vision_language import trained

_SCRIPTS = (".sh", ".bash", ".sbatch", ".slurm", ".job", ".lsf")
_TEMPLATE = re.compile(r"\{\{-?\s*[.$\w]")
_LONGEST_LINE = 1_000  # characters of a message; names in files may be of any length


class _Content(NamedTuple):
    """The settings of one file, and the commands in it that start a training."""

    settings: list[Setting]
    commands: tuple[Command, ...] = ()
    files: Mapping[str, str] = {}
    assumed: tuple[str, ...] = ()
    requested: tuple[Request, ...] = ()
    objects: tuple[Document, ...] = ()  # of Kubernetes


def read_job(paths: Sequence[str], options: Mapping[str, Any]) -> JobFile:
    """Read the job that several files describe together.

    Args:
        paths: files with an accelerate config, arguments of TRL or the Trainer, an axolotl config (YAML or JSON), a
            command line, or a manifest of a ``PyTorchJob`` or ``TrainJob``.
        options: fields of the job given by options; they override the files, whose settings for these are not read.

    Raises:
        BadInput: a file or a relevant setting in it cannot be read; the message names file, key and value.
    """
    try:
        options = {field: read(field, value) for field, value in options.items()}
    except ValueError as error:
        raise BadInput(str(error)) from None
    try:
        return _read_job(paths, options)
    except BadInput as error:
        raise BadInput("\n".join(shortened(line, _LONGEST_LINE) for line in str(error).split("\n"))) from None


def _read_job(paths: Sequence[str], options: Mapping[str, Any]) -> JobFile:
    located = [at_line(path) for path in paths]
    paths = [path for path, _ in located]
    texts = [read_text(path) for path in paths]
    contents = [_content_of(text, path, options, line) for text, (path, line) in zip(texts, located, strict=True)]
    found: list[Setting] = []
    unread: list[Setting] = []
    missing = missing_options(options)
    for path, content in zip(paths, contents, strict=True):
        others = [setting for other in contents if other is not content for setting in other.settings]
        sources = Sources(path, content.files, others, missing, unread, "sharding" in options, "offload" in options)
        found += with_named_files(content.settings, sources)
    for text, path, content in zip(texts, paths, contents, strict=True):
        found += defaults_of_release(text, path, found, content.commands)
    commands = [command for content in contents for command in content.commands]
    if any(
        (setting.dialect, setting.key) == ("axolotl", "config") for setting in unread
    ):  # its command has no settings; all are in the config
        commands = [command for command in commands if command.framework != "axolotl"]
    older = [name for text in texts for name in older_releases(text)]
    found = with_objective(found, paths, evidence_of(found, commands, older).framework, options)
    found, bounds = with_freeze(found, options)
    found, notes = together(found, options)
    job = job_of(of_deepspeed(found), evidence_of(found, commands, older), options)
    _check_tower(job, options)
    not_read = (f"{setting.place}: not read, because options describe the job" for setting in unread)
    of_scripts = (f"{path}: {line}" for path, content in zip(paths, contents, strict=True) for line in content.assumed)
    requests = tuple(request for content in contents for request in content.requested)
    objects = [Object(path, each) for path, content in zip(paths, contents, strict=True) for each in content.objects]
    return job._replace(
        read=(*job.read, *notes, *map(str, requests)),
        requests=requests,
        assumed=(*job.assumed, *bounds, *larger_evaluation(found, {**job.fields, **options}), *of_scripts, *not_read),
        counted=counted(found, requests, objects),
    )


def _check_tower(job: JobFile, options: Mapping[str, Any]) -> None:
    """Raise ``BadInput`` for files that train the vision tower of their model."""
    model, method = (str(options.get(field) or job.fields.get(field, "")) for field in ("model_name", "method"))
    if problem := trained(model, method, job.evidence.framework):
        raise BadInput(f"model_name: {problem}")


def _documents(text: str, path: str) -> tuple[list[Document], str]:
    """The documents of a file, and the reason if it has none and is not a script."""
    problem, suffix = "neither settings nor a command that starts a training", Path(path).suffix
    try:
        return load_documents(text, path), problem
    except NotDocuments as error:
        if suffix in (".ipynb", ".json"):
            raise BadInput(f"{path}: must be JSON ({error})") from None
        is_script = suffix in _SCRIPTS or text.startswith("#!")
        return [], problem if is_script else f"{problem} ({error})"
    except BadInput as error:
        if _TEMPLATE.search(text) and str(error).endswith("a key must be text"):
            raise BadInput(f"{error}; a template of Helm or Jinja has to be filled in first") from None
        raise


def _content_of(text: str, path: str, options: Mapping[str, Any], line: int | None = None) -> _Content:
    documents, problem = _documents(text, path)
    if is_runtime(documents):
        return _Content([], objects=tuple(documents))
    if is_manifest(documents):
        manifest = read_manifest(documents, path, options)
        settings = [*manifest.settings, *(s for launch in manifest.launches for s in launch.settings)]
        commands = tuple(Command(launch.framework, launch.script) for launch in manifest.launches)
        return _Content(settings, commands, objects=tuple(documents))
    if len(documents) == 1 and isinstance(documents[0].value, dict):
        if "nbformat" in documents[0].value:
            return _code(code_of(documents[0].value), path, options, of_notebook=True)
        if is_task(documents[0].value):
            task = read_task(documents[0], path)
            if task.launch is None and missing_options(options):
                raise BadInput(f"{path}: a task of SkyPilot without a command that starts a training; {NO_FILE}")
            if task.launch is None:
                return _Content([], requested=task.requests)
            return _of_launch(task.launch, task.requests)
        return _mapping(documents[0], path)
    kind = text_kind(text, path)
    if kind == PYTHON:
        return _code(text, path, options)
    if kind:
        raise BadInput(f"{path}: looks like {kind}, which is not read; {nearest(kind)}")
    if any(isinstance(document.value, dict | list) for document in documents):
        raise BadInput(f"{path}: must have settings, keys with values, in one document; {NO_FILE}")
    requests = tuple(requested(text, path))
    launch = launch_in_script(cleaned(text), partial(Place, path, None), environment(requests), 1, line)
    if launch is None:
        raise BadInput(f"{path}: {problem}; {NO_FILE}")
    return _of_launch(with_script(launch, path), requests)


def _of_launch(launch: Launch, requests: tuple[Request, ...]) -> _Content:
    return _Content(
        launch.settings, (Command(launch.framework, launch.script),), launch.files, launch.assumed, requests
    )


def _code(text: str, path: str, options: Mapping[str, Any], of_notebook: bool = False) -> _Content:
    if of_notebook and not text.strip():
        raise BadInput(f"{path}: a notebook without cells of code; {NO_FILE}")
    code = read_code(text, path)
    if code.framework is None and (missing := missing_options(options)):
        raise BadInput(f"{path}: the code that it submits to Kubernetes is not read; give {', '.join(missing)}")
    if code.parser is not None and (wanted := asked(code.settings, options)):
        raise BadInput(
            f"{code.parser}: the script takes its settings from a command or a config; give the file that starts it by "
            f"--job, or give {wanted}"
        )
    settings, requests = code.settings, code.requests
    if of_notebook:
        settings = [s._replace(place=s.place._replace(line=None)) for s in settings]
        requests = tuple(request._replace(place=request.place._replace(line=None)) for request in requests)
    return _Content(settings, (Command(code.framework, ""),), assumed=code.assumed, requested=requests)


def _mapping(document: Document, path: str) -> _Content:
    dialect = dialect_of(document.value, path)
    commands = (Command(dialect, ""),) if dialect in job_keys().frameworks and dialect != "llama-factory" else ()
    read = recipe_settings if dialect == "torchtune" else partial(settings_of, dialect)
    return _Content(list(read(document.value, places_in(document, path))), commands)
