"""``ado-autoconf recommend --job``: a job from the files that people have, and the manifest for its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from autoconf.cli.options import note
from autoconf.cli.output import output
from autoconf.jobs.importers.patch import Layout, patch_files
from autoconf.jobs.importers.reader import read_job

NOTHING_TO_PATCH = 3  # the exit code where there is no recommendation, so that no pipe applies an empty manifest


def job_from_files(paths: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the job in some files, with those that options give on top; what was read is noted.

    Raises:
        BadInput: something that matters cannot be read.
    """
    job = read_job(paths, options)
    for heading, lines in (
        ("read", job.read), ("assumed", job.assumed), ("ignored", job.ignored), ("not known here", job.unknown),
    ):  # fmt: skip
        for line in lines:
            note(f"{heading}: {line}")
    return {**job.fields, **options}


def write_patched(
    paths: Sequence[str], job: Mapping[str, Any], answer: Mapping[str, Any], output_file: str | None
) -> int:
    """Write the file that counts GPUs with the counts of the answer; note what that does to the global batch.

    Args:
        paths: Files of the job.
        job: The fields that files and options give.
        answer: One row of ``recommend``.
        output_file: Where the file is written; by default to standard output.

    Returns:
        The exit code: 0, or 3 without a recommendation; then the reason is noted and nothing is written.

    Raises:
        BadInput: No file counts GPUs, or a count in it cannot be changed.
    """
    if not answer["can_recommend"]:
        note(f"no recommendation: {answer['reason']}")
        return NOTHING_TO_PATCH
    layout = Layout(int(answer["gpus"]), int(answer["workers"]))
    patch = patch_files(paths, layout)
    note(f"{patch.file}: {gpu_change(patch.gpus_before, layout.gpus * layout.workers, job)}", first=True)
    with output(output_file) as stream:
        stream.write(patch.data)
    return 0


def gpu_change(before: int, after: int, job: Mapping[str, Any]) -> str:
    """A sentence about another number of GPUs, the global batch that follows, and what keeps the batch.

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
