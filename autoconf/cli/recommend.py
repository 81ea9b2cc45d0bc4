"""``ado-autoconf recommend``: the smallest number of GPUs, for a table of jobs or for one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, NoReturn

import typer

from autoconf.cli.ask import Asking, Writing, answer, answer_one, answered_one, given_fields
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

RECOMMEND = Asking(MIN_GPUS, recommend)


@query_options(MIN_GPUS)
def recommend_command(
    context: typer.Context,
    explained: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Of one job: where the memory goes and what would help, as text, or as a picture to --output.",
        ),
    ] = False,
    job_files: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="FILE",
            show_default=False,
            help="Read one job from a PyTorchJob or TrainJob, a command line, arguments of TRL or the Trainer, "
            "accelerate's or axolotl's config; several files are read as one job, and options win.",
        ),
    ] = None,
    patch: Annotated[
        bool,
        typer.Option(
            "--patch", help="With --job: write the manifest or accelerate config, with the GPU counts changed."
        ),
    ] = False,
) -> None:
    """Recommend the smallest number of GPUs, for a table of jobs or for one.

    $ ado-autoconf recommend --model llama-7b --method lora --gpu L40S --seq-len 512 --per-device-batch-size 8

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    A table's columns are named as the options of one job, with _ for -. Optional ones may be absent, and cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    Answers that the table has already (a column can_recommend) are replaced.
    If any line is bad, nothing is written.

    The answer about one job is printed as text, or with --json or --csv as data; to a file it is written as CSV.

    With --explain, the memory is shown too, on that number of GPUs and on the next smaller one.
    And which single changes of the job would lead to fewer GPUs, or to a recommendation.

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
    fields, to = given_fields(RECOMMEND, context), Writing.of(context)
    with exit_codes():
        if patch and not job_files:
            raise BadInput("--patch: needs --job")
        if explained and patch:
            raise BadInput("--explain and --patch exclude each other")
        if patch:
            _patch(job_files or [], fields, to)
        told: dict[str, Any] = {}
        if job_files:
            fields, told = job_from_files(job_files, fields)
        if explained:
            _explain_one(fields, to, told)
        else:
            answer_one(RECOMMEND, fields, to, told)


def _patch(job_files: list[str], fields: dict[str, Any], to: Writing) -> NoReturn:
    """Write the manifest with the counts of the answer; its change of GPUs is the first note."""
    with notes_held():
        fields, _ = job_from_files(job_files, fields)
        _, _, (shown,) = answered_one(RECOMMEND, fields)
        code = write_patched(job_files, fields, shown, to.file)
    to.end(code == ExitCode.NOTHING_TO_PATCH)
    raise typer.Exit(code)


def _explain_one(fields: dict[str, Any], to: Writing, told: dict[str, Any]) -> None:
    """Write one job, its answer, and why: as JSON, as a picture if a file is named, or as text."""
    as_picture = to.file is not None and not to.as_json
    kind = picture_kind(to.file or STANDARD_STREAM) if as_picture else None
    job, _, (shown,) = answered_one(RECOMMEND, fields)
    explanation = explain(job)
    if to.as_json:
        at = [{"number_gpus": count, **asdict(held)} for count, held in explanation.at.items()]
        with output(to.file) as stream:
            write_object({**shown, **told, "at": at, "changes": [asdict(c) for c in explanation.changes]}, stream)
    elif as_picture and memory_bars.drawn(explanation):
        figure = memory_bars.picture(job, explanation)
        with output(to.file) as stream:
            figure.savefig(stream, format=kind)
    else:
        if as_picture:
            note(f"{to.file}: not written, as there is nothing to draw")
        with output(None):
            show_answer({**shown, "reason": explanation.why}, MIN_GPUS)
            memory_bars.show_explanation(explanation)
    to.end(not shown["can_recommend"])
