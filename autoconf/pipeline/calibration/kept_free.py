"""Compare what versions keep free beside the peak of the same jobs.

``python -m autoconf.pipeline.calibration.kept_free`` prints the table of docs/how-it-works/calibration.md.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import typer

from autoconf.jobs.stack import REFERENCE
from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Floats
from autoconf.pipeline.report import markdown
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.registry import load

VERSIONS = ("1.1.0", "2.0.0", "3.0.0")
_GPU = "NVIDIA-A100-80GB-PCIe"
_COUNTS = (1, 2, 4, 8, 16)
_TOKENS = tuple(2**power for power in range(9, 18))  # of a micro-batch on each GPU
_BINS_GIB = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
_LEAST_SHARE = 0.5  # of the GPU's memory that a job holds, so that the margin matters


def kept_free_gib(predictor: Predictor, candidates: Candidates) -> Floats:
    """GiB of a GPU beside the peak of each candidate that a version wants free, shape (candidates,)."""
    several = candidates.gpus > 1
    step = np.where(several, predictor.step(True).above, predictor.step(False).above)
    headroom = predictor.features(candidates).iloc[:, 0].to_numpy()  # usable memory beyond the peak and the margin
    return np.asarray(candidates.usable_gib - _peaks_gib(candidates) - headroom + step)


def jobs_of(predictor: Predictor, models: list[str]) -> Candidates:
    """Jobs of models under the reference stack, with and without accumulation."""
    stacks = [REFERENCE.model_copy(update={"gradient_accumulation": on}) for on in (False, True)]
    drawn = list(itertools.product(models, ("full", "lora"), stacks, _COUNTS, _TOKENS))
    rows = np.array([predictor.row(model, method, stack) for model, method, stack, _, _ in drawn], np.int64)
    gpus = np.array([count for *_, count, _ in drawn], np.int64)
    tokens = np.array([tokens for *_, tokens in drawn], float)
    usable = np.full(len(drawn), predictor.domain.gpus[_GPU].usable_gib)
    return Candidates(predictor.memory, rows, gpus, tokens, usable)


def by_activations() -> list[dict[str, Any]]:
    """The median of what each version keeps free, by the number of GPUs and the activations of jobs."""
    predictors = {version: load(version) for version in VERSIONS}
    models = sorted(set.intersection(*(set(predictor.domain.models) for predictor in predictors.values())))
    asked = {version: jobs_of(predictor, models) for version, predictor in predictors.items()}
    candidates = asked["2.0.0"]
    table = pd.DataFrame(
        {
            "gpus": np.where(candidates.gpus > 1, "several", "one"),
            "activations_gib": _activations_gib(predictors["2.0.0"], candidates),
            "peak_gib": _peaks_gib(candidates),
            **{version: kept_free_gib(predictors[version], of) for version, of in asked.items()},
        }
    )
    usable = candidates.usable_gib
    near = table[(table["peak_gib"] >= _LEAST_SHARE * usable) & (table["peak_gib"] <= usable)]
    bins = pd.cut(near["activations_gib"], _BINS_GIB, include_lowest=True, right=False)
    groups = near.groupby(["gpus", bins], observed=True)[list(VERSIONS)]
    medians, counts = groups.median().round(2), groups.size()
    return [
        {"GPUs": gpus, "activations, GiB": f"{of.left:g} to {of.right:g}", "jobs": int(counts[gpus, of])}
        | {version: f"{medians.loc[(gpus, of), version]:.2f}" for version in VERSIONS}
        for gpus, of in medians.index
    ]


def _activations_gib(predictor: Predictor, candidates: Candidates) -> Floats:
    """The part of the deciding moment that grows with tokens."""
    reserve = predictor.card.reserve
    assert isinstance(candidates.memory, StackMemory) and reserve is not None
    place = candidates.rows, candidates.gpus, candidates.tokens_per_gpu
    return np.asarray(candidates.memory.deciding_gib(*place, reserve)[:, 1])


def _peaks_gib(candidates: Candidates) -> Floats:
    return np.asarray(candidates.memory.peak_bytes(candidates.rows, candidates.gpus, candidates.tokens_per_gpu) / GIB)


def main() -> None:
    """Print the median of what versions keep free."""
    typer.echo(markdown(by_activations()))


if __name__ == "__main__":
    typer.run(main)
