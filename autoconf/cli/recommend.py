"""``ado-autoconf recommend``: the smallest number of GPUs, for a table of jobs or for one."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from autoconf.cli.ask import (
    AsJson,
    Asking,
    CsvFile,
    OutputFile,
    _answer_one,
    _answered_one,
    _given,
    _write_json,
    answer,
    job_option,
)
from autoconf.cli.console import show_answer
from autoconf.cli.job_file import job_from_files, write_patched
from autoconf.cli.options import exit_codes, note, picture_kind, with_options
from autoconf.cli.output import output
from autoconf.cli.plots import memory_bars
from autoconf.errors import BadInput
from autoconf.jobs.queries import MIN_GPUS
from autoconf.planner.explanation import explain
from autoconf.planner.min_gpus import recommend

RECOMMEND = Asking(MIN_GPUS, recommend)


@with_options(partial(job_option, MIN_GPUS), RECOMMEND.options)
def recommend_command(
    context: typer.Context,
    csv_file: CsvFile = None,
    output_file: OutputFile = None,
    as_json: AsJson = False,
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
            help="One job as it stands: a PyTorchJob or TrainJob, a command line, arguments of TRL or the Trainer, "
            "accelerate's or axolotl's config; several are read together, and options win.",
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

    A table's columns are named as the options of one job, with _ for -. Optional ones may be absent, and cells empty.
    All columns are kept; can_recommend (0 or 1), gpus (per worker), workers and reason are appended.
    Where the table has answers already (a column can_recommend), new ones replace them.
    If any line is bad, no answer is written.

    One job is printed as a table to a terminal, as CSV elsewhere.

    $ ado-autoconf recommend --csv jobs.csv --output answers.csv

    $ ado-autoconf recommend --model-name llama-7b --method lora --gpu-model L40S --tokens-per-sample 512 --batch-size 8

    With --explain also where the memory goes, on that number of GPUs and on the next smaller one.
    And which single changes of the job would lead to fewer GPUs, or to a recommendation.

    $ ado-autoconf recommend --job examples/pytorchjob.yaml --patch
    """
    if csv_file is None and (explained or job_files or patch):
        with exit_codes():
            fields: dict[str, Any] = dict(_given(RECOMMEND, context))
            if job_files:
                fields = job_from_files(job_files, fields)
            elif patch:
                raise BadInput("--patch: needs --job")
            if explained and patch:
                raise BadInput("--explain and --patch exclude each other")
            if explained:
                _explain_one(fields, output_file, as_json)
            elif patch:
                _, _, (shown,) = _answered_one(RECOMMEND, fields)
                raise typer.Exit(write_patched(job_files or [], fields, shown, output_file))
            else:
                _answer_one(RECOMMEND, fields, output_file, as_json)
        return
    with exit_codes():
        if explained:
            raise BadInput("--explain: for one job only")
        if job_files or patch:
            raise BadInput("--csv and --job or --patch exclude each other")
    answer(RECOMMEND, context, csv_file, output_file, as_json)


def _explain_one(fields: dict[str, Any], output_file: str | None, as_json: bool) -> None:
    """Write one job, its answer, and why: as JSON, as a picture where a file is named, or as text."""
    kind = picture_kind(output_file) if output_file is not None and not as_json else None
    job, _, (shown,) = _answered_one(RECOMMEND, fields)
    explanation = explain(job)
    if as_json:
        at = [{"number_gpus": count, **asdict(held)} for count, held in explanation.at.items()]
        with output(output_file) as stream:
            _write_json({**shown, "at": at, "changes": [asdict(change) for change in explanation.changes]}, stream)
    elif kind is not None and memory_bars.drawn(explanation):
        figure = memory_bars.picture(job, explanation)
        with output(output_file) as stream:
            figure.savefig(stream, format=kind)
    else:
        if kind is not None:
            note(f"{output_file}: not written, as there is nothing to draw")
        with output(None):
            show_answer({**shown, "reason": explanation.why}, MIN_GPUS)
            memory_bars.show_explanation(explanation)
