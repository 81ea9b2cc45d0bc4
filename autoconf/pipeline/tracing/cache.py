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
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile
from autoconf.memory.store import read_models, write_models
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.tracing.ways import all_ways

TRACER = 2  # increase it when the figures of a model change


def fingerprint(architecture: Architecture) -> str:
    """The digest of the inputs of a model's profile."""
    made_of = json.dumps([TRACER, architecture.config, architecture.lora_targets], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def traces(names: list[str], *released: Path) -> list[ModelProfile]:
    """The profiles of models.

    Args:
        names: entries of ``architectures.yaml``.
        released: folders with profiles of versions, the newest last; they need not exist. Profiles of the same tracer
            are taken from them. What they lack is traced, up to two minutes for each model, two at a time, and stored
            in the user's cache folder.
    """
    wanted = {name: fingerprint(architectures()[name]) for name in names}
    known = {
        figures.model_name: figures
        for folder in released
        if folder.exists()
        for figures in read_models(folder)
        if figures.made_of == wanted.get(figures.model_name)
    }
    missing = [name for name in names if name not in known or known[name].missing(_ways(name))]
    with ProcessPoolExecutor(max_workers=min(os.cpu_count() or 1, max(len(missing), 1))) as pool:
        found = pool.map(_cached, missing, map(known.get, missing))
        for figures in track(found, description="tracing", total=len(missing)):
            known[figures.model_name] = figures
    return [known[name] for name in names]


def _ways(name: str) -> list[LayerWay | HeadWay]:
    return all_ways(architectures()[name].kinds)


def _cached(name: str, known: ModelProfile | None = None) -> ModelProfile:
    """Trace what a known profile lacks, or read its cached trace; an interrupted run loses only the current model."""
    architecture = architectures()[name]
    # A release may trace more ways than an earlier one.
    cached = f"{name}-{fingerprint(architecture)}-{len(_ways(name))}"
    folder = platformdirs.user_cache_path("ado-autoconf") / "traces" / cached
    if not folder.exists():
        from autoconf.pipeline.tracing.trace_model import traced  # importing torch and transformers takes seconds

        with atomic_folder(folder, replace=False) as scratch:  # another process may have finished first
            write_models([traced(architecture, known=known)], scratch)
    return replace(read_models(folder)[0], made_of=fingerprint(architecture))
