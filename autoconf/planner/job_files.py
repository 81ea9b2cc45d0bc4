"""Read a job from existing files, and patch the file that sets the number of GPUs with an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.gpus_of_job import Counted
from autoconf.jobs.importers.patch import Layout, NoCounts, Patched, patch_files
from autoconf.jobs.importers.reader import read_job
from autoconf.jobs.importers.translate import JobFile
from autoconf.jobs.job import Workload, with_gpu
from autoconf.jobs.model_config import config_file
from autoconf.jobs.names import listed
from autoconf.jobs.queries import AVOID_OOM, MIN_GPUS, NUMBER_GPUS, Query
from autoconf.planner.avoid_oom import avoid_oom
from autoconf.planner.known_names import gpu_names, model_names_of
from autoconf.planner.results import Recommendation
from autoconf.predictor import registry
from autoconf.predictor.cards import Domain
from autoconf.predictor.user_versions import ModelsFolder

# The fields in the first lines of the summary; a job has one of the batches.
_FIRST = ("method", "tokens_per_sample", "per_device_train_batch_size", "batch_size")
_NUMBERS_ANSWERED = ("tokens_per_sample", "per_device_train_batch_size")  # of these a placeholder is given


class FromFiles(NamedTuple):
    """A job from files and options.

    Attributes:
        fields: The fields of the job, and the arguments of the query.
        provenance: Settings that were read, assumed or unknown, as columns of an answer.
        notes: The same as sentences, one for each line.
        gpus: The GPUs that the files request; ``None`` if this is not certain.
        counted: The counts of the files.
    """

    fields: dict[str, Any]
    provenance: dict[str, Any]
    notes: tuple[str, ...]
    gpus: int | None = None
    counted: Counted = Counted()


def complete_job(paths: Sequence[str], options: Mapping[str, Any], query: Query = MIN_GPUS) -> FromFiles:
    """Read a job from files, and override it with options.

    Args:
        paths: The files.
        options: The fields and arguments given by options.
        query: The query about the job; fields that it answers are not read.

    Raises:
        BadInput: A required setting cannot be read or is missing.
    """
    job = read_fields(paths, options, query)
    found = {**job.fields, **_counts(job, query)}
    fields = {**{field: value for field, value in found.items() if field in query.fields}, **options}
    if missing := missing_of(job, fields, query):
        raise BadInput(f"{', '.join(paths)}: not certain: {missing}")
    if "model_name" not in options:
        fields["model_name"] = _model(paths, job, fields)
    notes = tuple(_notes(job, fields, options, query))
    return FromFiles(fields, provenance_of(job), notes, job.counted.gpus, job.counted)


def read_fields(paths: Sequence[str], options: Mapping[str, Any], query: Query) -> JobFile:
    """Read the job of a query; a setting is not needed if an option gives it or the query answers it.

    Raises:
        BadInput: A required setting cannot be read.
    """
    fields = {field: value for field, value in options.items() if field in Workload.model_fields}
    answered = [field for field in query.answered if field in _NUMBERS_ANSWERED]
    job = read_job(paths, {**dict.fromkeys(answered, 1), **fields})
    job = job._replace(fields={**_gpu(job, options), **job.fields})
    if not answered:
        return job
    either = "set by an option, or the output of this command"
    ignored = tuple(line.replace("set by an option", either) for line in job.ignored)
    return job._replace(ignored=ignored)


def provenance_of(job: JobFile) -> dict[str, Any]:
    """Settings that were read, assumed or unknown, as columns of an answer."""
    return {
        "belongs_to": _evidence(job),
        "read": [*(source.record() for source in job.sources), *(request.record() for request in job.requests)],
        "assumed": list(job.assumed),
        "unknown": list(job.unknown),
    }


def _counts(job: JobFile, query: Query) -> dict[str, int]:
    """The number of GPUs that the files request, and those of each of several nodes."""
    if NUMBER_GPUS not in query.arguments or job.counted.gpus is None:
        return {}
    counts = {NUMBER_GPUS: job.counted.gpus}
    if (job.counted.workers or 1) > 1 and job.counted.per_worker:
        counts["gpus_per_worker"] = job.counted.per_worker
    return counts


def _notes(job: JobFile, fields: Mapping[str, Any], options: Mapping[str, Any], query: Query) -> Iterator[str]:
    for field in _FIRST:
        if field in fields:
            yield f"{field}: {fields[field]} ({'options' if field in options else job.origin(field)})"
    if NUMBER_GPUS in fields:
        places = [*(request.place for request in job.requests), *(count.place for count in job.counted.sources)]
        counts = dict.fromkeys(map(str, places))
        yield f"{NUMBER_GPUS}: {fields[NUMBER_GPUS]} ({'options' if NUMBER_GPUS in options else ', '.join(counts)})"
    counted = {str(count.place) for count in job.counted.sources} if NUMBER_GPUS in query.arguments else set()
    yield from notes_of(job._replace(ignored=tuple(line for line in job.ignored if line not in counted)))


def notes_of(job: JobFile) -> Iterator[str]:
    """A sentence for each setting that was read, assumed, ignored or is unknown."""
    if evidence := _evidence(job):
        yield f"belongs to: {evidence}"
    for heading, lines in (
        ("read", job.read), ("assumed", job.assumed), ("ignored", job.ignored), ("not known here", job.unknown),
    ):  # fmt: skip
        yield from (f"{heading}: {line}" for line in lines)


def _evidence(job: JobFile) -> str:
    """The framework that the files belong to, and the evidence."""
    evidence = job.evidence
    if evidence.framework is None:
        return ""
    kind = "" if evidence.proven else ", whose own defaults are not certain here"
    return f"{evidence.framework}{kind} (by {', '.join(evidence.because) or 'no key of another trainer'})"


def missing_of(job: JobFile, fields: Mapping[str, Any], query: Query) -> str:
    """The required fields of a query that are neither in the files nor in the options; empty if there are none."""
    given = with_gpu(fields)
    missing = [field for field in query.required if field not in given]
    if query.batches and not any(batch in fields for batch in query.batches):
        missing.append("per_device_train_batch_size")
    if not missing:
        return ""
    asked = list(job.asked) if "method" in missing else []
    if "gpu_model" in missing:  # a type that fits several of the version
        asked += [str(request) for request in job.requests if request.kind]
    if NUMBER_GPUS in missing:
        asked.append(job.counted.problem)
    hints = f" ({'; '.join(asked)})" if asked else ""
    wanted = [f"--{field.replace('_', '-')}" for field in missing]
    return f"{', '.join(missing)}{hints}; give {listed(wanted)}"


def _gpu(job: JobFile, options: Mapping[str, Any]) -> dict[str, str]:
    """The type of GPU that Slurm is asked for, if it is one, and fits one type of the version.

    Raises:
        BadInput: The version is not known.
    """
    kinds = {request.kind for request in job.requests if request.kind}
    if len(kinds) != 1 or "gpu_model" in {**job.fields, **options}:
        return {}
    (kind,) = kinds
    return {} if gpu_names(_domain(options)).find(kind) is None else {"gpu_model": kind}


def _domain(fields: Mapping[str, Any]) -> Domain:
    try:
        return registry.load(str(fields.get("model_version") or registry.DEFAULT)).domain
    except ValueError as error:
        raise BadInput(str(error)) from None


def _model(paths: Sequence[str], job: JobFile, fields: Mapping[str, Any]) -> str:
    """The model of the files: a name, or a folder with a config on this machine.

    Raises:
        BadInput: It is a path that does not exist here; the message suggests the model that it ends like.
    """
    name = str(fields["model_name"])
    for folder in (Path(), *(Path(path).parent for path in paths)):
        if config_file(str(folder / name)) is not None:
            return str(folder / name)
    if not name.startswith(("/", "./", "../", "~")) and name.count("/") < 2:
        return name
    version = str(fields.get("model_version") or registry.DEFAULT)
    names = model_names_of(_domain(fields))
    if names.find(name) is not None:
        return name
    raise BadInput(f"{job.origin('model_name')}: {names.refusal(name, version)}; give --model-name")


def fewest_nodes(fields: Mapping[str, Any], gpus_per_node: int, models: ModelsFolder = None) -> Recommendation:
    """Find the fewest nodes on which a job fits, each with the same number of GPUs.

    Args:
        fields: The fields of the job; up to its ``max_gpus`` GPUs are considered, by default 64.
        gpus_per_node: GPUs of each node.
        models: Folder of user versions.

    Raises:
        BadInput: The fields are invalid.
    """
    if fields.get("batch_size") is not None:
        raise BadInput("--nodes-only: give --per-device-train-batch-size instead of --batch-size")
    try:
        job, _ = AVOID_OOM.parse(
            {"model_version": registry.DEFAULT, **fields, "gpus_per_worker": gpus_per_node, NUMBER_GPUS: gpus_per_node}
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    total = gpus_per_node
    while True:
        found = avoid_oom(job, number_gpus=total, models=models)
        if not found.can_recommend or found.gpus is None or found.workers is None:
            return found
        needed = found.gpus * found.workers
        if needed == total:
            return replace(found, gpus=gpus_per_node, workers=total // gpus_per_node)
        total = -(-needed // gpus_per_node) * gpus_per_node


def patch_job(paths: Sequence[str], job: FromFiles, gpus: int, workers: int, nodes_only: bool = False) -> Patched:
    """Change the GPU counts in the one file that sets them; the first note describes the effect on the global batch.

    Args:
        paths: Files of the job.
        job: The job from files and options.
        gpus: GPUs of each worker.
        workers: Workers.
        nodes_only: Whether only counts of nodes may change.

    Raises:
        OtherCounts: With ``nodes_only``, another count would have to change.
        BadInput: No file sets the number of GPUs, or a number in it cannot be changed.
    """
    try:
        patch = patch_files(paths, Layout(gpus, workers), nodes_only)
    except NoCounts:
        if not job.counted.sources:
            raise
        place = job.counted.sources[0].place
        raise BadInput(f"--patch: {place} counts the GPUs; to change it, give {place.file} by --job, too") from None
    change = f"{patch.file}: {gpu_change(patch.gpus_before, gpus * workers, job.fields)}"
    return patch._replace(notes=(change, *patch.notes))


def gpu_change(before: int, after: int, job: Mapping[str, Any]) -> str:
    """Describe a change of the number of GPUs, its effect on the global batch, and how to keep the batch.

    >>> gpu_change(8, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    '8 -> 1 GPUs: the global batch changes from 64 to 8 samples; gradient_accumulation_steps=16 keeps it at 64'
    >>> trl = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    >>> print(gpu_change(8, 3, trl).replace("; ", ";\\n"))
    8 -> 3 GPUs: the global batch changes from 8 to 3 samples;
    gradient_accumulation_steps=2 makes it 6, and 3 makes it 9;
    more than 1 step needs more memory, so ask again with it
    >>> gpu_change(8, 2, {"per_device_train_batch_size": 4})
    '8 -> 2 GPUs: the global batch becomes 1/4 of what it was; 4 times the gradient_accumulation_steps keep it'
    >>> gpu_change(8, 2, {"batch_size": 16})
    '8 -> 2 GPUs: the batch of 16 samples needs per_device_train_batch_size=8'
    """
    return f"{before} -> {after} GPUs: {_batch_change(before, after, job)}"


def _batch_change(before: int, after: int, job: Mapping[str, Any]) -> str:
    each, steps = (int(job.get(f) or 0) for f in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    if not each:
        batch = int(job["batch_size"])
        return f"the batch of {batch} samples needs per_device_train_batch_size={batch // after}"
    if before in (0, after):
        return "the global batch stays as it is" if before else "the file had none"
    if not steps:
        kept = f"{Fraction(before, after)} times the gradient_accumulation_steps keep it"
        return f"the global batch becomes {Fraction(after, before)} of what it was; {kept}"
    batch = before * each * steps
    fewer, rest = divmod(before * steps, after)
    choices = [n for n in (fewer, fewer + 1) if n and rest] or [fewer]
    effect = "makes it" if rest else "keeps it at"
    effects = ", and ".join(f"{n} {effect} {after * each * n}" for n in choices)
    change = f"from {batch} to {after * each * steps} samples; gradient_accumulation_steps={effects}"
    memory = "; more than 1 step needs more memory, so ask again with it" if steps == 1 and before > after else ""
    return f"the global batch changes {change}{memory}"
