"""Virtual fine-tuning runs: traced figures of models, and tables of jobs labelled by them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from autoconf.build.architectures import Architecture, architectures
from autoconf.figures import MemoryFigures, read_figures, write_figures
from autoconf.memory import GIB, MemoryTable
from autoconf.predictors import LABEL, Domain, candidates_of
from autoconf.rules import Candidates

TRACES = Path(__file__).with_name("traces.csv")  # cache of traces, kept in the repository
_FINGERPRINTS = Path(__file__).with_name("traces.json")  # what each trace was made of

# GiB of a GPU that training needs beside the peak of its tensors: CUDA context, workspaces, fragmentation and, on
# several GPUs, NCCL's buffers. Read off 270 real fine-tuning runs of mistral-7b-v0.1: with these figures every run that
# completed fits, and twice the tokens per GPU of the largest of them does not (``make evaluate MEASURED=...``). For
# several GPUs any figure above 3.06 and up to 4.60 GiB would do; for one, any up to 4.46.
RESERVE_GIB = {False: 1.5, True: 3.1}  # by whether the job is sharded

# The training grid. Evaluation draws its jobs between these points.
TOKEN_STEP = 64
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_DRAWS, _NEAR_THE_EDGE, _ANYWHERE = 4000, 20, 8  # per model, method, GPU, accumulation and GPU count


def traces(names: list[str]) -> list[MemoryFigures]:
    """Figures of the named models, from the cache where an architecture did not change since it was traced.

    A trace of a new model takes seconds; the cache is written back.
    """
    cached = {f.key: f for f in read_figures(TRACES)} if TRACES.exists() else {}
    fingerprints: dict[str, str] = json.loads(_FINGERPRINTS.read_text()) if _FINGERPRINTS.exists() else {}
    stale = [a for a in map(architectures().__getitem__, names) if fingerprints.get(a.name) != _fingerprint(a)]
    if stale:
        from autoconf.build import tracer  # torch and transformers take seconds to import

        for architecture in track(stale, description="tracing"):
            for figures in tracer.all_figures(architecture):
                cached[figures.key] = figures
            fingerprints[architecture.name] = _fingerprint(architecture)
        write_figures(cached.values(), TRACES)
        _FINGERPRINTS.write_text(json.dumps(fingerprints, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [f for name in names for f in cached.values() if f.model_name == name]


def _fingerprint(architecture: Architecture) -> str:
    made_of = json.dumps([architecture.config, architecture.lora_targets], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def peak_gib(candidates: Candidates) -> np.ndarray:
    """Traced peak of each candidate, GiB per GPU without the reserve."""
    return candidates.memory.peak_bytes(candidates.rows, candidates.gpus, candidates.tokens_per_gpu) / GIB


def headroom_gib(candidates: Candidates) -> np.ndarray:
    """Usable memory less traced peak and reserve, GiB; a job fits where it is not negative."""
    reserve = np.where(candidates.gpus > 1, RESERVE_GIB[True], RESERVE_GIB[False])
    return candidates.usable_gib - peak_gib(candidates) - reserve


def training_runs(figures: list[MemoryFigures], domain: Domain) -> pd.DataFrame:
    """The table that a version is trained on: for every combination, jobs near the edge of memory and jobs anywhere.

    Returns:
        Columns ``model_name``, ``method``, ``gpu_model``, ``tokens_per_sample``, ``batch_size``,
        ``gradient_accumulation_steps``, ``number_gpus``, ``peak_gib`` (per GPU, without the reserve) and ``fits``.
    """
    generator = np.random.default_rng(20260101)
    memory, rows = MemoryTable(figures), {f.key: row for row, f in enumerate(figures)}
    parts = []
    for f in track(figures, description="labelling"):
        for gpu in domain.gpus:
            for count in GPU_COUNTS:
                drawn = _draw(generator, f, gpu, count, domain)
                headroom = headroom_gib(candidates_of(drawn, memory, rows, domain))
                near = np.argsort(np.abs(headroom), kind="stable")[:_NEAR_THE_EDGE]
                parts.append(drawn.iloc[np.union1d(near, np.arange(_ANYWHERE))])
    runs = pd.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)
    return label(runs, memory, rows, domain)


def label(runs: pd.DataFrame, memory: MemoryTable, rows: dict, domain: Domain) -> pd.DataFrame:
    """Add the columns ``peak_gib`` and ``fits`` to a table of runs."""
    candidates = candidates_of(runs, memory, rows, domain)
    return runs.assign(
        peak_gib=peak_gib(candidates).round(4), **{LABEL: (headroom_gib(candidates) >= 0).astype(np.int8)}
    )


def _draw(generator: np.random.Generator, figures: MemoryFigures, gpu: str, count: int, domain: Domain) -> pd.DataFrame:
    """Jobs of one combination, tokens and batches spread evenly over their orders of magnitude."""
    steps = domain.max_tokens_per_sample // TOKEN_STEP
    tokens = np.exp(generator.uniform(0, np.log(steps + 1), _DRAWS)).astype(int) * TOKEN_STEP
    per_gpu = np.exp(generator.uniform(0, np.log(domain.max_batch_size // count + 1), _DRAWS)).astype(int)
    return pd.DataFrame(
        {
            "model_name": figures.model_name,
            "method": figures.method,
            "gpu_model": gpu,
            "tokens_per_sample": tokens,
            "batch_size": per_gpu * count,
            "gradient_accumulation_steps": 4 if figures.accumulating else 1,
            "number_gpus": count,
        }
    )
