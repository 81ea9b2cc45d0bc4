"""Implement ``--explain``: the memory by part behind an answer about one job, and the changes that would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from autoconf.cli.ask import CommandQuery, OutputOptions, answered_one, says_no
from autoconf.cli.console import show_answer, show_answers
from autoconf.cli.options import note, picture_kind
from autoconf.cli.output import output, write_object
from autoconf.cli.plots import memory_bars
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.job import BATCHES, Job
from autoconf.jobs.queries import MIN_GPUS, NUMBER_GPUS
from autoconf.planner.estimate import estimate
from autoconf.planner.explanation import Explanation, explain


def explain_one(
    command: CommandQuery, fields: dict[str, Any], to: OutputOptions, provenance: Mapping[str, Any]
) -> None:
    """Write one job and its explained answer: as JSON, as a picture if a file is given, or as text.

    Args:
        command: The query.
        fields: The fields of the job.
        to: The output options.
        provenance: The sources of the fields, for JSON.
    """
    as_picture = to.file is not None and not to.as_json
    kind = picture_kind(to.file or STANDARD_STREAM) if as_picture else None
    job, answers, shown = answered_one(command, fields)
    explained = _explained(command, job, shown[0])
    drawn = explained is not None and memory_bars.drawn(explained[1])
    if to.as_json:
        with output(to.file) as stream:
            write_object(_as_object(command, shown, explained, provenance), stream)
    elif as_picture and explained is not None and drawn:
        figure = memory_bars.picture(*explained)
        with output(to.file) as stream:
            figure.savefig(stream, format=kind)
    else:
        if as_picture:
            note(f"{to.file}: not written, because there is nothing to draw")
        with output(None):
            _show(command, shown, explained)
    to.end(says_no(answers, command.query))


def _explained(command: CommandQuery, job: Job, answer: Mapping[str, Any]) -> tuple[Job, Explanation] | None:
    """The job that an answer describes, and its explanation; ``None`` if there is no such job."""
    query = command.query
    if query == MIN_GPUS:
        return job, explain(job)
    found = {field: answer[field] for field in query.answered if answer.get(field) is not None}
    if not answer[query.answers[0]] and query.answered:
        return None
    given = {**job.model_dump(exclude_unset=True), **found}
    if all(given.get(batch) for batch in BATCHES):
        del given["batch_size"]
    requested = answer.get(NUMBER_GPUS)
    if requested is not None:
        given["max_gpus"] = max(requested, given.get("max_gpus") or MIN_GPUS.max_gpus)
    complete, _ = MIN_GPUS.parse({field: value for field, value in given.items() if value is not None})
    explanation = explain(complete)
    if requested is not None and explanation.at:
        at = {requested: estimate(complete, number_gpus=requested), **explanation.at}
        explanation = replace(explanation, at=dict(sorted(at.items())))
    return complete, explanation


def _as_object(
    command: CommandQuery,
    shown: list[dict[str, Any]],
    explained: tuple[Job, Explanation] | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    answer = {"answers": shown} if "rank" in command.query.answers else shown[0]
    at, changes = (explained[1].at, explained[1].changes) if explained else ({}, ())
    held = [{NUMBER_GPUS: count, **asdict(each)} for count, each in at.items()]
    return {**answer, **provenance, "at": held, "changes": [asdict(change) for change in changes]}


def _show(command: CommandQuery, shown: list[dict[str, Any]], explained: tuple[Job, Explanation] | None) -> None:
    query = command.query
    if "rank" in query.answers:
        show_answers(shown, query)
    elif query == MIN_GPUS and explained is not None:
        show_answer({**shown[0], "reason": explained[1].why}, query)
    else:
        show_answer(shown[0], query)
    if explained is not None:
        memory_bars.show_explanation(explained[1])
