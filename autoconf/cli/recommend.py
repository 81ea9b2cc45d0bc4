"""The command ``ado-autoconf recommend``: the smallest number of GPUs for a table of jobs or for one job."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, NoReturn

import typer

from autoconf.cli.ask import CommandQuery, OutputOptions, answer, answer_one, answered_one, given_fields
from autoconf.cli.console import show_answer
from autoconf.cli.job_file import job_from_files, write_patched
from autoconf.cli.job_options import query_options
from autoconf.cli.options import ExitCode, exit_codes, note, notes_held, picture_kind
from autoconf.cli.output import output, write_object
from autoconf.cli.plots import memory_bars
from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.explanation import explain
from autoconf.planner.min_gpus import recommend

RECOMMEND = CommandQuery(MIN_GPUS, recommend)


@query_options(MIN_GPUS)
def recommend_command(
    context: typer.Context,
    explained: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="For one job: show the memory by part and the changes that would help, as text, or as a picture with "
            "--output.",
        ),
    ] = False,
    job_files: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="FILE",
            show_default=False,
            help="Read one job from a PyTorchJob or TrainJob, a shell or Python script, arguments of TRL or the "
            "Trainer, or a config of accelerate, axolotl or LLaMA-Factory; several files form one job; options win.",
        ),
    ] = None,
    patch: Annotated[
        bool,
        typer.Option(
            "--patch", help="With --job: write the manifest or accelerate config, with the GPU counts changed."
        ),
    ] = False,
) -> None:
    """Recommend the smallest number of GPUs for a table of jobs or for one job.

    $ ado-autoconf recommend --model llama-7b --method lora --gpu L40S --seq-len 512 --per-device-batch-size 8

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    The columns of a table have the names of the options of one job, with _ for -. Optional columns may be absent, and
    optional cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    If the table already has answers (a column can_recommend), they are replaced.
    If any line is invalid, nothing is written.

    The answer about one job is printed as text, or as data with --json or --csv; a file is written as CSV.

    --explain also shows the memory on that number of GPUs and on the next smaller one, and the single changes of the
    job that would lead to fewer GPUs or to a recommendation.

    $ ado-autoconf recommend --job examples/pytorchjob.yaml --patch
    """
    if context.params["csv_file"] is not None:
        with exit_codes():
            if explained:
                raise BadInput("--explain: for one job only")
            if job_files or patch:
                raise BadInput("--csv and --job or --patch exclude each other")
        answer(RECOMMEND, context)
        return
    fields, to = given_fields(RECOMMEND, context), OutputOptions.of(context)
    with exit_codes():
        if patch and not job_files:
            raise BadInput("--patch: needs --job")
        if explained and patch:
            raise BadInput("--explain and --patch exclude each other")
        if patch:
            _patch(job_files or [], fields, to)
        provenance: dict[str, Any] = {}
        if job_files:
            fields, provenance, _ = job_from_files(job_files, fields)
        if explained:
            _explain_one(fields, to, provenance)
        else:
            answer_one(RECOMMEND, fields, to, provenance)


def _patch(job_files: list[str], fields: dict[str, Any], to: OutputOptions) -> NoReturn:
    """Write the manifest with the GPU counts of the answer; the first note describes the change."""
    with notes_held():
        fields, *_ = job_from_files(job_files, fields)
        _, _, (shown,) = answered_one(RECOMMEND, fields)
        code = write_patched(job_files, fields, shown, to.file)
    to.end(code == ExitCode.NOTHING_TO_PATCH)
    raise typer.Exit(code)


def _explain_one(fields: dict[str, Any], to: OutputOptions, provenance: dict[str, Any]) -> None:
    """Write one job and its explained answer: as JSON, as a picture if a file is given, or as text."""
    as_picture = to.file is not None and not to.as_json
    kind = picture_kind(to.file or STANDARD_STREAM) if as_picture else None
    job, _, (shown,) = answered_one(RECOMMEND, fields)
    explanation = explain(job)
    if to.as_json:
        at = [{"number_gpus": count, **asdict(held)} for count, held in explanation.at.items()]
        with output(to.file) as stream:
            write_object({**shown, **provenance, "at": at, "changes": [asdict(c) for c in explanation.changes]}, stream)
    elif as_picture and memory_bars.drawn(explanation):
        figure = memory_bars.picture(job, explanation)
        with output(to.file) as stream:
            figure.savefig(stream, format=kind)
    else:
        if as_picture:
            note(f"{to.file}: not written, because there is nothing to draw")
        with output(None):
            show_answer({**shown, "reason": explanation.why}, MIN_GPUS)
            memory_bars.show_explanation(explanation)
    to.end(not shown["can_recommend"])
