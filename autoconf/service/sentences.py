"""Answers in a few words, for agents."""

from __future__ import annotations

from typing import Any

from autoconf.planner.memory_parts import COLORS
from autoconf.planner.results import layout


def in_words(tool: str, answer: dict[str, Any]) -> str:
    """An answer with its reason and notes, in a few sentences.

    Args:
        tool: The name of the tool.
        answer: The answer as JSON data.

    >>> in_words("recommend", {"can_recommend": 1, "gpus": 4, "workers": 2, "training_stack": "trl", "notes": []})
    '2 workers of 4 GPUs, with the training stack trl.'
    >>> in_words("recommend", {"can_recommend": 0, "reason": "it is too large", "notes": ["a note"]})
    'No: it is too large. Note: a note.'
    """
    if tool == "read_job":
        return _of_files(answer)
    notes = [f"Note: {note}." for note in answer["notes"]]
    return " ".join([*_SENTENCES.get(tool, _recommended)(answer), *notes])


def _no(answer: dict[str, Any]) -> list[str]:
    return [f"No: {answer['reason']}."]


def _recommended(answer: dict[str, Any]) -> list[str]:
    if not answer["can_recommend"]:
        return _no(answer)
    return [f"{layout(answer['gpus'], answer['workers'])}, with the training stack {answer['training_stack']}."]


def _estimated(answer: dict[str, Any]) -> list[str]:
    if answer["fits"] is None:
        return _no(answer)
    needs = f"{answer['needed_memory_gib']:.1f} of {answer['usable_memory_gib']:.1f} GiB are needed on each GPU"
    parts = {part: answer.get(f"{part}_gib") for part in COLORS}
    shown = ", ".join(f"{part} {gib:.1f}" for part, gib in parts.items() if gib is not None)
    verdict = (
        f"Fits (probability {answer['probability']:.2f})" if answer["fits"] else f"Does not fit: {answer['reason']}"
    )
    return [f"{verdict}.", f"{needs}: {shown}."]


def _explained(answer: dict[str, Any]) -> list[str]:
    at = [
        f"On {held['number_gpus']}: {held['needed_memory_gib']:.1f} of {held['usable_memory_gib']:.1f} GiB, "
        f"{'fits' if held['fits'] else 'does not fit'}."
        for held in answer["at"]
        if held["fits"] is not None
    ]
    first = _recommended(answer) if answer["can_recommend"] else [f"No: {answer['why']}."]
    return [*first, *at, *(f"{change['sentence']}." for change in answer["changes"])]


def _largest(answer: dict[str, Any]) -> list[str]:
    if not answer["can_recommend"]:
        return _no(answer)
    on = f"on {answer['number_gpus']} GPUs"
    each, batch = answer.get("per_device_train_batch_size"), answer.get("batch_size")
    if each and batch:  # a job has one of them, so the other is the answer
        return [f"{each} samples on each GPU, {batch} over all, {on}."]
    return [f"{answer['tokens_per_sample']} tokens per sample {on}."]


def _timed(answer: dict[str, Any]) -> list[str]:
    if answer["tokens_per_second"] is None:
        return _no(answer)
    speed, low, high = (f"{answer[f'tokens_per_second{end}']:,.0f}" for end in ("", "_low", "_high"))
    found = [f"{speed} tokens per second ({low} to {high}), limited by {answer['limit']}."]
    if answer["hours"] is not None:
        cost = "" if answer["cost"] is None else f", which cost {answer['cost']:.2f}"
        found.append(f"The run takes {answer['hours']:.1f} hours{cost}.")
    return [*found, *([] if answer["fits"] else ["It does not fit into memory."])]


def _ranked(answer: dict[str, Any]) -> list[str]:
    fitting = [row for row in answer["ranking"] if row["can_recommend"]]
    if not fitting:
        return _no(answer["ranking"][0])
    shown = []
    for row in fitting[:3]:
        cost = _costs(row)
        shown.append(f"{row['rank']}. {row['gpu_model']}: {layout(row['gpus'], row['workers'])}, {cost}.")
    return shown


def _costs(row: dict[str, Any]) -> str:
    """The costs of a row of a ranking, in words."""
    if row["cost_per_hour"] is None:
        return "no price"
    of_run = "" if row["cost"] is None else f"{row['cost']:.2f} for the run of {row['hours']:.1f} hours, "
    of_tokens = row["cost_per_million_tokens"]
    per_million = "" if of_tokens is None else f"{of_tokens:.3g} per million tokens, "
    return f"{of_run}{per_million}{row['cost_per_hour']:g} per hour"


def _of_files(answer: dict[str, Any]) -> str:
    job = ", ".join(f"{field}={value}" for field, value in answer["read"]["job"].items())
    assumed = [f"Assumed: {line}." for line in answer["read"]["assumed"]]
    patched = answer["patched"]
    changed = (
        f"Patched {patched['file']}: {patched['notes'][0]}." if patched else f"Not patched: {answer['not_patched']}."
    )
    return " ".join([f"Read {job}.", *assumed, *_recommended(answer["answer"]), changed])


_SENTENCES = {
    "estimate": _estimated,
    "explain": _explained,
    "largest": _largest,
    "cheapest": _ranked,
    "throughput": _timed,
}
