"""The two fields with the batch of a job, of which it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BATCHES = ("batch_size", "per_device_train_batch_size")


def check_batch(fields: Mapping[str, Any], allowed: Sequence[str] = BATCHES) -> None:
    """Check that a job has exactly one of the allowed batch fields, or no batch field if none is allowed.

    Raises:
        ValueError: the job has none, both or the wrong one; the message names the fields.
    """
    given = [field for field in BATCHES if fields.get(field) is not None]
    if allowed and not given:
        first, *others = allowed
        raise ValueError(", or ".join([f"{first}: is required", *(f"{other} instead" for other in others)]))
    if len(given) > 1:
        raise ValueError("batch_size and per_device_train_batch_size exclude each other: give one of them")
    for field in given:
        if field not in allowed:
            raise ValueError(f"{field}: use {' or '.join(allowed)} instead")
