"""Traced profiles of models, read from a cache if their inputs have not changed."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import platformdirs
from rich.progress import track

from autoconf.files import atomic_folder
from autoconf.memory.profile import ModelProfile
from autoconf.memory.store import read_models, write_models
from autoconf.pipeline.catalog import Architecture, architectures

TRACER = 2  # increase it when the figures of a model change


def fingerprint(architecture: Architecture) -> str:
    """The digest of the inputs of a model's profile."""
    made_of = json.dumps([TRACER, architecture.config, architecture.lora_targets], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def traces(names: list[str], released: Path) -> list[ModelProfile]:
    """The profiles of models.

    Args:
        names: entries of ``architectures.yaml``.
        released: folder with profiles of a version, which need not exist. Profiles that are up to date are taken from
            it. Others are traced, a minute or two for each, two at a time, and stored in the user's cache folder.
    """
    known = {f.model_name: f for f in read_models(released)} if released.exists() else {}
    wanted = {name: fingerprint(architectures()[name]) for name in names}
    missing = [name for name in names if name not in known or known[name].made_of != wanted[name]]
    with ProcessPoolExecutor(max_workers=min(os.cpu_count() or 1, max(len(missing), 1))) as pool:
        for figures in track(pool.map(_cached, missing), description="tracing", total=len(missing)):
            known[figures.model_name] = figures
    return [known[name] for name in names]


def _cached(name: str) -> ModelProfile:
    """Trace a model, or read its cached trace; an interrupted run loses only the current model."""
    architecture = architectures()[name]
    folder = platformdirs.user_cache_path("ado-autoconf") / "traces" / f"{name}-{fingerprint(architecture)}"
    if not folder.exists():
        from autoconf.pipeline.tracing.trace_model import traced  # importing torch and transformers takes seconds

        with atomic_folder(folder, replace=False) as scratch:  # another process may have finished first
            write_models([traced(architecture)], scratch)
    return replace(read_models(folder)[0], made_of=fingerprint(architecture))
