"""The jobs of benchmarks: the points of the sweep, 20,000 similar points, and random jobs of a version's domain."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from autoconf import recommend
from autoconf.jobs.job import STACK_FIELDS
from autoconf.pipeline.release.random_jobs import random_stacks
from autoconf.predictor.registry import DEFAULT, card, load

EXAMPLES = Path(__file__).parents[1] / "sweep" / "examples"
DOMAIN = card(DEFAULT).domain
SMALL = {"model_name": ["llama-7b", "granite-8b-code-base"], "tokens_per_sample": [512, 8192]}
LONG = {
    "model_name": sorted(DOMAIN.models)[:20],
    "tokens_per_sample": [320 * n for n in range(1, 26)],
    "batch_size": [1, 2, 4, 6, 8, 12, 16, 24, 32, 64],
    "gpu_model": sorted(DOMAIN.gpus)[:2],
}


def space(**values: list[Any]) -> dict[str, Any]:
    """The sweep space's configuration, with other values for some dimensions."""
    configuration = yaml.safe_load((EXAMPLES / "space.yaml").read_text(encoding="utf-8"))
    for dimension in configuration["entitySpace"]:
        domain = dimension["propertyDomain"]
        domain["values"] = values.get(dimension["identifier"], domain["values"])
    return configuration


def points(configuration: dict[str, Any]) -> pd.DataFrame:
    """The points of a space, one per row."""
    values = {
        dimension["identifier"]: dimension["propertyDomain"]["values"] for dimension in configuration["entitySpace"]
    }
    return pd.DataFrame(list(itertools.product(*values.values())), columns=list(values))


def random_jobs(count: int) -> pd.DataFrame:
    """Jobs with every optional input; sizes are spread over their scales."""
    random = np.random.default_rng(0)

    def size(largest: int) -> np.ndarray:
        return np.exp2(random.uniform(0, np.log2(largest + 0.9), count)).astype(np.int64)

    return pd.DataFrame(
        {
            "model_name": random.choice(sorted(DOMAIN.models), count),
            "method": random.choice(DOMAIN.methods, count),
            "gpu_model": random.choice(sorted(DOMAIN.gpus), count),
            "tokens_per_sample": size(DOMAIN.max_tokens_per_sample),
            "batch_size": size(DOMAIN.max_batch_size),
            "model_version": DEFAULT,
            "gpus_per_worker": random.choice([1, 2, 4, 8], count),
            "max_gpus": size(DOMAIN.max_gpus),
            "gradient_accumulation_steps": random.choice([1, 4], count),
        }
    )


def with_stacks(jobs: pd.DataFrame, count: int) -> pd.DataFrame:
    """The jobs with random ones of ``count`` different stacks, each of which its method allows."""
    random = np.random.default_rng(1)
    drawn = ({field: job[field] for field in STACK_FIELDS} for job in random_stacks(load(DEFAULT), random))
    stacks: dict[tuple[Any, ...], None] = {}
    while len(stacks) < count:
        stacks[tuple(next(drawn).values())] = None
    chosen = pd.DataFrame(list(stacks), columns=list(STACK_FIELDS), dtype=object).sample(
        len(jobs), replace=True, random_state=0, ignore_index=True
    )
    return pd.concat([jobs.drop(columns=list(STACK_FIELDS), errors="ignore"), chosen], axis=1)


class LongTable:
    """A table of random jobs, and the time and memory that this process, which must run on Linux, takes to answer it.

    Args:
        rows: number of jobs.
        stacks: number of different stacks; 0 if all jobs have the default one.
    """

    def __init__(self, rows: int, stacks: int = 0) -> None:
        self.jobs = with_stacks(random_jobs(rows), stacks) if stacks else random_jobs(rows)
        recommend(random_jobs(1000))  # loads the predictor, and what Python sets aside at the first use
        self.before = _memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak

    def answer(self) -> None:
        started = time.process_time()
        self.answers = recommend(self.jobs)
        self.cpu_seconds = time.process_time() - started

    def extra_mb(self) -> float:
        """The peak during the answer, less the memory before and the answers, with each text counted once."""
        texts = {id(text): sys.getsizeof(text) for text in self.answers["reason"]}
        held = (int(self.answers.memory_usage().sum()) + sum(texts.values())) / 1e6
        return _memory_mb("VmHWM") - self.before - held


def _memory_mb(field: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6
