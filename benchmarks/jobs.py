"""The jobs that are measured: the sweep space's, and random ones from a version's domain."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import yaml
from commands import ROOT

from autoconf.predictors import DEFAULT, card

SPACE = ROOT / "sweep" / "examples" / "space.yaml"
VERSION = DEFAULT


def space_configuration(experiment: str, **dimensions: list[Any]) -> dict[str, Any]:
    """The sweep space for an experiment, with other values for the given dimensions."""
    space = yaml.safe_load(SPACE.read_text(encoding="utf-8"))
    space["experiments"][0]["experimentIdentifier"] = experiment
    for dimension in space["entitySpace"]:
        if dimension["identifier"] in dimensions:
            dimension["propertyDomain"]["values"] = dimensions[dimension["identifier"]]
    return space


def points(space: dict[str, Any]) -> pd.DataFrame:
    """The points of a space, one a line."""
    values = {dimension["identifier"]: dimension["propertyDomain"]["values"] for dimension in space["entitySpace"]}
    return pd.DataFrame(list(itertools.product(*values.values())), columns=list(values))


def sweep_jobs() -> pd.DataFrame:
    """The 3,960 jobs of the sweep space."""
    return points(space_configuration("min_gpu_recommender"))


def arguments(jobs: pd.DataFrame) -> list[dict[str, Any]]:
    """Each job as the arguments of a call."""
    return [{str(field): value for field, value in job.items()} for job in jobs.to_dict("records")]


def dimensions_of_20000_points() -> dict[str, list[Any]]:
    """Values that make the sweep space one of 20 x 25 x 10 x 2 x 2 = 20,000 points."""
    domain = card(VERSION).domain
    return {
        "model_name": sorted(domain.models)[:20],
        "tokens_per_sample": [320 * n for n in range(1, 26)],
        "batch_size": [1, 2, 4, 6, 8, 12, 16, 24, 32, 64],
        "gpu_model": sorted(domain.gpus)[:2],
        "method": sorted(domain.methods)[:2],
    }


def random_jobs(count: int) -> pd.DataFrame:
    """Jobs from all of the newest version's domain, with every optional input; sizes are spread over their scales.

    Args:
        count: number of jobs, >= 1.
    """
    domain = card(VERSION).domain
    random = np.random.default_rng(0)

    def size(largest: int) -> np.ndarray:
        return np.exp2(random.uniform(0, np.log2(largest + 0.9), count)).astype(np.int64)

    return pd.DataFrame(
        {
            "model_name": random.choice(sorted(domain.models), count),
            "method": random.choice(domain.methods, count),
            "gpu_model": random.choice(sorted(domain.gpus), count),
            "tokens_per_sample": size(domain.max_tokens_per_sample),
            "batch_size": size(domain.max_batch_size),
            "model_version": VERSION,
            "gpus_per_worker": random.choice([1, 2, 4, 8], count),
            "max_gpus": size(domain.max_gpus),
            "gradient_accumulation_steps": random.choice([1, 4], count),
        }
    )
