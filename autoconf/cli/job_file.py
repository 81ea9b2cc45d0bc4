"""``ado-autoconf recommend --job``: a job from the files that people have, and the manifest for its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def write_patched(paths: Sequence[str], answer: Mapping[str, Any], output_file: str | None) -> int:
    """Write the file that counts GPUs with the counts of the answer; note what that does to the global batch.

    Args:
        paths: Files of the job.
        answer: One row of ``recommend``, with the fields of the job.
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
    note(f"{patch.file}: {gpu_change(patch.gpus_before, layout.gpus * layout.workers, answer)}")
    with output(output_file) as stream:
        stream.write(patch.data)
    return 0


def gpu_change(before: int, after: int, job: Mapping[str, Any]) -> str:
    """A sentence about another number of GPUs, the global batch that follows, and what keeps the batch.

    >>> gpu_change(8, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    '8 -> 1 GPUs; the global batch changes from 64 to 8 samples; gradient_accumulation_steps=16 keeps it at 64'
    >>> print(gpu_change(8, 3, {"per_device_train_batch_size": 1}).replace("; ", ";\\n"))
    8 -> 3 GPUs;
    the global batch changes from 8 to 3 samples;
    gradient_accumulation_steps=2 makes it 6 and 3 makes it 9;
    more than 1 step needs more memory, so ask again with it
    >>> gpu_change(8, 2, {"batch_size": 16})
    '8 -> 2 GPUs; the batch of 16 samples needs per_device_train_batch_size=8'
    """
    if not job.get("per_device_train_batch_size"):
        needed = int(job["batch_size"]) // after
        kept = f"the batch of {job['batch_size']} samples needs per_device_train_batch_size={needed}"
        return f"{before} -> {after} GPUs; {kept}"
    each, steps = int(job["per_device_train_batch_size"]), int(job.get("gradient_accumulation_steps") or 1)
    batch = before * each * steps
    if before == after:
        return f"{before} -> {after} GPUs; the global batch stays at {batch} samples"
    fewer, rest = divmod(before * steps, after)
    choices = [fewer, fewer + 1] if rest else [fewer]
    effects = [f"{n} {'makes' if rest else 'keeps'} it {'' if rest else 'at '}{after * each * n}" for n in choices if n]
    parts = [
        f"{before} -> {after} GPUs",
        f"the global batch changes from {batch} to {after * each * steps} samples",
        f"gradient_accumulation_steps={' and '.join(effects)}",
    ]
    if steps == 1 and before > after:
        parts.append("more than 1 step needs more memory, so ask again with it")
    return "; ".join(parts)
