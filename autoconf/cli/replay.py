"""Implement ``ado-autoconf estimate --replay``, which replays the allocations of one job."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answer_one
from autoconf.cli.console import show_replay
from autoconf.cli.options import note, picture_kind
from autoconf.cli.output import output, write_object
from autoconf.cli.plots import timeline
from autoconf.errors import AutoConfError, BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.job import Job
from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.loading import LOADING
from autoconf.planner.estimate import estimate
from autoconf.planner.hardware import compute_capability
from autoconf.planner.known_names import names_of
from autoconf.predictor import registry
from autoconf.predictor.build_extra import check_build_extra

if TYPE_CHECKING:
    from autoconf.pipeline.replay.judge import Timeline, Verdict

_EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


@dataclass(frozen=True)
class ReplayOptions:
    """Options of a replay.

    Args:
        alloc_conf: settings of PyTorch's allocator, in the format of its environment variable.
        overhead_gib: memory outside PyTorch; ``None`` for the default.
    """

    alloc_conf: str = ""
    overhead_gib: float | None = None


def replay_one(command: CommandQuery, fields: dict[str, Any], to: OutputOptions, options: ReplayOptions) -> None:
    """Write the result of a replay of one job as JSON or as text, with a picture if a file is given.

    Args:
        command: the query of the fields.
        fields: fields of the job, and its number of GPUs.
        to: the output options.
        options: the options of the replay.

    Raises:
        BadInput: an option is invalid, the extra [build] is missing, or the job cannot be replayed.
        AutoConfError: a library of the extra [build] does not import.
    """
    as_picture = to.file is not None and not to.as_json
    kind = picture_kind(to.file or STANDARD_STREAM) if as_picture else ""
    if to.as_csv:
        raise BadInput("--replay: gives text, JSON and a picture, and no CSV")
    settings = _settings(options.alloc_conf)
    job, gpus = _job(command, fields)
    check_build_extra("--replay")
    found = estimate(job, number_gpus=gpus)
    if found.usable_memory_gib is None:  # the answer is the reason
        note(f"not replayed: {found.reason}")
        answer_one(command, fields, to)
        return
    overhead = options.overhead_gib
    if overhead is not None and not 0 <= overhead < found.usable_memory_gib:
        raise BadInput(f"--overhead-gib: must be from 0 to less than the GPU's {found.usable_memory_gib:g} GiB")
    verdict, drawn, basis = replayed(job, gpus, found.usable_memory_gib, settings, options)
    answer = {**_given(command, job, gpus), **asdict(verdict), "training_stack": job.stack_name()}
    if to.as_json:
        with output(to.file) as stream:
            write_object({**answer, "notes": replay_notes(verdict, basis)}, stream)
    else:
        if as_picture:
            figure = timeline.picture(job, gpus, verdict, drawn)
            with output(to.file) as stream:
                figure.savefig(stream, format=kind)
        if to.file != STANDARD_STREAM:
            with output(None):
                show_replay(answer, replay_notes(verdict, basis))
    to.end(not verdict.fits)


def _settings(alloc_conf: str) -> AllocatorSettings:
    try:
        return AllocatorSettings.parse(alloc_conf)
    except ValueError as error:
        raise BadInput(f"--alloc-conf: {error}") from None


def _job(command: CommandQuery, fields: Mapping[str, Any]) -> tuple[Job, int]:
    try:
        job, numbers = command.query.parse({"model_version": registry.DEFAULT, **fields})
    except ValueError as error:
        raise BadInput(str(error)) from None
    return job, numbers["number_gpus"]


def _given(command: CommandQuery, job: Job, gpus: int) -> dict[str, Any]:
    given = job.model_dump(exclude_unset=True)
    fields = (field for field in command.query.fields if given.get(field) is not None)
    return {**{field: given[field] for field in fields}, "number_gpus": gpus}


def replayed(
    job: Job, gpus: int, usable_gib: float, settings: AllocatorSettings, options: ReplayOptions
) -> tuple[Verdict, Timeline, str]:
    """Return the result of a replay, its memory over time, and where the memory outside PyTorch comes from."""
    assert job.gpu_model is not None and job.tokens_per_sample is not None
    domain = registry.card(job.model_version or registry.DEFAULT).domain
    names = names_of(domain)
    model, gpu = names["model_name"].find(job.model_name), names["gpu_model"].find(job.gpu_model)
    method = names["method"].find(job.method)
    with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):  # libraries print, and warn
        try:
            from autoconf.pipeline.catalog import architectures, gpu_types
            from autoconf.pipeline.replay import outside_pytorch
            from autoconf.pipeline.replay.judge import judge
            from autoconf.pipeline.replay.record import Batches, record
            from autoconf.pipeline.tracing.model_setup import TrainingSetup
            from autoconf.pipeline.tracing.recorder import TraceError
        except Exception as error:  # a broken library can raise any exception at import
            raise AutoConfError(
                f"a library of the extra [build] does not import: {type(error).__name__}: {error}"
            ) from None
        if model is None or model not in architectures():
            user_model = f"{model or job.model_name} is a user model"
            raise BadInput(f"--replay: {user_model}; only models of released versions can be replayed")
        stack = job.training_stack()
        if stack.is_hybrid:
            raise BadInput(
                f"--replay: sharding {job.sharding} is not replayed; fsdp2 on one worker's GPUs holds as much"
            )
        samples = job.per_device_train_batch_size or (job.batch_size or gpus) // gpus
        batches = Batches(samples, job.tokens_per_sample, job.gradient_accumulation_steps)
        newer = gpu is not None and (compute_capability(gpu, domain.gpus[gpu]) or _capability(gpu)) >= 9
        try:
            setup = TrainingSetup(architectures()[model], method, stack, gpus)  # type: ignore[arg-type]
            capability = 9 if newer else 8
            program = record(setup, batches, compute_capability=capability, loading=stack.loading, report=_tell)
        except TraceError as error:
            raise BadInput(f"--replay: {error}") from None
        _tell(f"replaying {len(program.events):,} events")
        overhead = options.overhead_gib
        measured = outside_pytorch.overhead(gpus, gpu if gpu in gpu_types() else None)
        given = outside_pytorch.Overhead(overhead, "--overhead-gib") if overhead is not None else measured
        return *judge(program, usable_gib, given.gib, settings), given.basis


def _capability(gpu: str) -> float:
    """The compute capability of a GPU type that its version does not have."""
    from autoconf.pipeline.catalog import gpu_types

    return gpu_types()[gpu].compute_capability if gpu in gpu_types() else 8.0


def _tell(message: str) -> None:
    typer.secho(f"replay: {message}", err=True, dim=True)


def replay_notes(verdict: Verdict, basis: str) -> list[str]:
    """Sentences about the basis of the answer, and changes that would help."""
    notes = [
        "replayed from the model as loaded through three steps",
        f"{verdict.overhead_gib:g} GiB of the GPU are outside PyTorch's allocator: {basis}",
    ]
    if verdict.fails_at.startswith(LOADING):
        notes.append(
            f"loading holds up to {verdict.peak_loading_gib:.2f} GiB of each GPU; FSDP moves a model that is in the "
            "CPU's memory unit by unit (--loading cpu, or rank0); a 4-bit model is always loaded on the GPU"
        )
    if verdict.expandable_segments_help:
        notes.append(f"with {_EXPANDABLE} it needs {verdict.expandable_segments_gib:.2f} GiB, and fits")
    elif not verdict.fits:
        notes.append(f"with {_EXPANDABLE} it needs {verdict.expandable_segments_gib:.2f} GiB, and does not fit either")
    if verdict.touchy:
        notes.append(
            "it would run with less memory, too, and fail with some more of it: what is given back, and when, decides"
        )
    return notes
