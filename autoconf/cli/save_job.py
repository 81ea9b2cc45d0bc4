"""Implement ``--save-job``: write a job as an entity for ado's ``run_experiment``."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoconf.cli.options import note
from autoconf.cli.output import output
from autoconf.errors import BadInput
from autoconf.files import STANDARD_STREAM
from autoconf.jobs.queries import (
    AVOID_OOM,
    ESTIMATE,
    GPU_MODEL,
    LARGEST_BATCH,
    LARGEST_SAMPLE,
    MIN_GPUS,
    NUMBER_GPUS,
    THROUGHPUT,
    Query,
)
from autoconf.predictor import registry

_EXPERIMENTS = (
    (MIN_GPUS, "min_gpu_recommender"),
    (AVOID_OOM, "avoid_oom_recommender"),
    (LARGEST_BATCH, "largest_batch_recommender"),
    (LARGEST_SAMPLE, "largest_sample_recommender"),
    (GPU_MODEL, "gpu_model_recommender"),
    (ESTIMATE, "memory_estimator"),
    (THROUGHPUT, "throughput_estimator"),
)


def save_job(path: str, query: Query, fields: Mapping[str, Any], gpus: int | None = None) -> None:
    """Write a job to a new file, as the YAML that ``run_experiment`` takes.

    Args:
        path: The file; ``-`` is standard output.
        query: The query whose experiment the file names.
        fields: The fields of the job, and the arguments of the query.
        gpus: The GPUs that the files of the job request, if known.

    Raises:
        BadInput: The file exists or cannot be written, or the job is invalid.
    """
    import yaml

    if path == STANDARD_STREAM:
        raise BadInput("--save-job: must be a file, because standard output has the answer")
    if os.path.lexists(Path(path)):
        raise BadInput(f"{path}: cannot write it: {os.strerror(errno.EEXIST)}; choose another --save-job, or remove it")
    try:
        job, numbers = query.parse({"model_version": registry.DEFAULT, **fields})
    except ValueError as error:
        raise BadInput(str(error)) from None
    known = {**job.model_dump(exclude_unset=True), **numbers}
    known |= _batch(path, query, known, numbers.get(NUMBER_GPUS, gpus))
    entity = {field: known[field] for field in query.all_fields if known.get(field) is not None}
    experiment = next(name for each, name in _EXPERIMENTS if each == query)
    document = {
        "entity": entity,
        "experiments": [{"actuatorIdentifier": "custom_experiments", "experimentIdentifier": experiment}],
    }
    with output(path) as stream:
        stream.write(f"# run_experiment {Path(path).name}\n".encode())
        stream.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())
    note(f"{path}: the job for run_experiment")


def _batch(path: str, query: Query, known: Mapping[str, Any], gpus: int | None) -> dict[str, int | None]:
    """The batch that ado's experiment has: over all GPUs, except for a query of the batch on each GPU alone."""
    each = known.get("per_device_train_batch_size")
    if not each or "batch_size" not in query.batches:
        return {}
    if gpus is None:
        raise BadInput(
            f"{path}: ado's experiments count the batch over all GPUs, whose number no file gives; give --batch-size "
            "instead of the batch on each GPU, or save the job of avoid-oom with --number-gpus"
        )
    note(
        f"{path}: batch_size {each * gpus} is {each} on each of {gpus} GPUs; in ado it stays on another number of GPUs"
    )
    return {"per_device_train_batch_size": None, "batch_size": each * gpus}
