"""Read and write the file of a user model: its profile and its architecture. Reading does not need torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from autoconf.errors import BadInput
from autoconf.files import cannot_read
from autoconf.memory.profile import ModelProfile
from autoconf.memory.store import metadata, read_models, write_model
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing.cache import fingerprint

_ARCHITECTURE = "architecture"


class Trace(NamedTuple):
    """A user model and its profile."""

    architecture: Architecture
    figures: ModelProfile


def write_trace(architecture: Architecture, figures: ModelProfile, stream: BinaryIO) -> None:
    """Write the profile of a model; equal profiles give equal bytes.

    Args:
        architecture: the traced architecture.
        figures: profile from ``tracing.traced``.
        stream: the file to write to.
    """
    made = replace(figures, made_of=fingerprint(architecture))
    write_model(made, stream, {_ARCHITECTURE: architecture.model_dump_json()})


def read_trace(path: str | Path) -> Trace:
    """Read what ``write_trace`` wrote.

    Args:
        path: a file of ``ado-autoconf trace``.

    Raises:
        BadInput: it cannot be read, is not such a file, or was traced by another release.
    """
    try:
        text = metadata(Path(path), _ARCHITECTURE)
        if text is None:
            raise ValueError("it does not hold a model")
    except (OSError, ValueError) as error:
        # Arrow's errors have only a number, or are about Parquet, which users do not know about.
        number = getattr(error, "errno", None)
        why = OSError(number, os.strerror(number)) if number else ValueError("it is not a file of ado-autoconf trace")
        raise cannot_read(path, why) from None
    try:
        architecture = Architecture.model_validate_json(text)
        (figures,) = read_models(Path(path))
        if figures.made_of != fingerprint(architecture) or figures.model_name != architecture.name:
            raise ValueError("other figures")
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"{path}: another release of ado-autoconf traced it, or it was altered; trace the model again"
        ) from None
    return Trace(architecture, figures)
