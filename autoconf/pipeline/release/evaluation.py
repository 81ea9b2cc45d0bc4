"""Evaluate a version: compare the predictor with traces plus the safety margin, on jobs outside the training data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autoconf.jobs.job import STACK_FIELDS, stack_of
from autoconf.jobs.presets import SETTINGS
from autoconf.jobs.stack import Stack
from autoconf.memory.candidates import Candidates
from autoconf.memory.units import Booleans
from autoconf.pipeline.release.random_jobs import GPUS_PER_WORKER, random_jobs
from autoconf.planner.domain import JobArrays
from autoconf.planner.rules import loading_fits, resident_state_fits
from autoconf.planner.search import decide, smallest
from autoconf.predictor.cards import Card
from autoconf.predictor.check_jobs import candidates, supported
from autoconf.predictor.predictor import Predictor

JOBS = 20_000
NEAR = 0.10  # share of usable memory: half of the jobs are this close to the limit
HARMFUL = 0.02  # a false positive this far beyond the limit is not due to rounding
_SEED = 7
_JOBS_A_STACK = 20 / 3
_COMPOSED = ("objective", "sharding", "offload", "quantization", "trained_modules", "use_dora")
_SIZES = 100  # jobs drawn for each stack, to choose from
_SLICES = 100  # on each side of the limit

# Required of a version, and the target; a figure is a percentage of the jobs or pairs it is measured on.
SAME_DECISION = "same decision (fits on n GPUs or not)"
SAME_MINIMUM = "same minimum number of GPUs"
HARMFUL_FITS = "wrong 'fits' by more than 2 % of memory"
SAME_SWEEP = "same minimum on the 3,960-point sweep"
IMPOSSIBLE = "physically impossible answers"
TARGETS: dict[str, tuple[str, float, float]] = {
    SAME_DECISION: (">=", 99.5, 99.9),
    SAME_MINIMUM: (">=", 99.0, 99.8),
    HARMFUL_FITS: ("<=", 0.1, 0.0),
    SAME_SWEEP: (">=", 99.5, 100.0),
    IMPOSSIBLE: ("<=", 0.0, 0.0),
}
_PAIRS: dict[str, Callable[[pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]]] = {
    # Pairs of jobs (the lesser one, the greater one): the lesser job must not be refused if the greater one fits.
    "more tokens turn no into yes": lambda j: (j, j.assign(tokens_per_sample=j["tokens_per_sample"] + 17)),
    "more batch turns no into yes": lambda j: (j, j.assign(batch_size=j["batch_size"] + j["number_gpus"])),
    "fewer GPUs, from two on, turn no into yes": lambda j: _fewer_gpus(j[j["number_gpus"] > 1]),
    "LoRA is refused where full is not (stack reference)": lambda j: _methods(j),
    "checkpointing is refused where none is not": lambda j: _set(
        _without_zero3(j), "gradient_checkpointing", "non-reentrant", "none"
    ),
    "fused AdamW is refused where foreach is not": lambda j: _set(j, "optim", "adamw_torch_fused", "adamw_torch"),
    "8-bit states are refused where 32-bit ones are not": lambda j: _set(
        j.assign(torch_dtype="float32", adapter_dtype=None)[j["method"] != "qlora"],
        "optim",
        "adamw_bnb_8bit",
        "adamw_torch",
    ),
    "a lower rank is refused where a higher is not": lambda j: _set(
        # ZeRO-3 keeps small parameters whole, such as adapters of a low rank.
        _without_zero3(j[j["method"] != "full"]).assign(optim="adamw_torch"),
        "lora_r",
        8,
        16,
    ),
    "a chunked loss is refused where a full one is not": lambda j: _set(_long(j), "loss", "chunked", "full"),
}


def _set(jobs: pd.DataFrame, field: str, less: Any, more: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    return jobs.assign(**{field: less}), jobs.assign(**{field: more})


def _without_zero3(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs[[stack.sharding != "zero3" for stack in _stacks(jobs)]]


def _stacks(jobs: pd.DataFrame) -> list[Stack]:
    fields = [field for field in STACK_FIELDS if field in jobs]
    drawn = jobs[fields].astype(object).itertuples(index=False, name=None)
    return [stack_of(dict(zip(fields, job, strict=True))) for job in drawn]


def _fewer_gpus(jobs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Jobs with the same batch, which is first made divisible by both numbers of GPUs."""
    divisible = jobs.assign(batch_size=jobs["batch_size"] * 2)
    return divisible.assign(number_gpus=jobs["number_gpus"] * 2), divisible


def _methods(jobs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    reference = jobs.assign(stack="reference", **dict.fromkeys(SETTINGS))
    return reference.assign(method="lora"), reference.assign(method="full")


def _long(jobs: pd.DataFrame) -> pd.DataFrame:
    """Jobs with enough tokens for the guaranteed ordering."""
    tokens = jobs["tokens_per_sample"] * jobs["batch_size"] / jobs["number_gpus"]
    adapters = jobs["method"] != "full"
    return jobs[tokens >= np.where(adapters & (jobs["stack"] != "trl"), 4_096, np.where(adapters, 16_384, 32_768))]


class TracedAnswers(Predictor):
    """A predictor that answers by the traces and the safety margin."""

    def fits(self, candidates: Candidates) -> Booleans:
        return headroom_gib(self, candidates) >= 0


def headroom_gib(predictor: Predictor, candidates: Candidates) -> np.ndarray:
    """Usable memory less what a job needs, GiB."""
    return predictor.features(candidates)["headroom_gib"].to_numpy()


@dataclass(frozen=True)
class Judged:
    """Jobs on numbers of GPUs with their headroom and the predictions; all arrays have shape (jobs,)."""

    jobs: pd.DataFrame
    candidates: Candidates
    headroom_gib: np.ndarray
    predicted: Booleans

    @property
    def true(self) -> Booleans:
        fits: Booleans = (self.headroom_gib >= 0) & loading_fits(self.candidates)
        return fits

    @property
    def distance(self) -> np.ndarray:
        """Distance from the limit as a share of usable memory."""
        return np.abs(self.headroom_gib) / self.candidates.usable_gib


def judge(predictor: Predictor, jobs: pd.DataFrame) -> Judged:
    """Compare a predictor's decisions about jobs with those by the traces."""
    found = candidates(predictor, jobs)
    return Judged(jobs, found, headroom_gib(predictor, found), decide(predictor, found))


def evaluation_jobs(predictor: Predictor, count: int) -> pd.DataFrame:
    """Draw unseen jobs, half of them within 10 % of usable memory from the limit."""
    pool = random_jobs(predictor, np.random.default_rng(_SEED), round(count / _JOBS_A_STACK), _SIZES)
    found = candidates(predictor, pool)
    relative = pd.Series(headroom_gib(predictor, found) / found.usable_gib)
    near = relative[relative.abs() <= NEAR]
    # Evenly over the distance, because otherwise the many jobs with equal peaks would dominate.
    slices = near.groupby(np.floor(near * _SLICES / NEAR), sort=True)
    chosen = np.concatenate([group.index[: count // (4 * _SLICES)] for _, group in slices])
    far = relative[relative.abs() > NEAR].sample(count - len(chosen), random_state=_SEED).index
    return pool.loc[np.concatenate([chosen, far])].reset_index(drop=True)


def minimum(predictor: Predictor, jobs: pd.DataFrame, max_gpus: int) -> np.ndarray:
    """Smallest total number of GPUs on which each job fits, 0 if there is none; shape (jobs,)."""
    single = candidates(predictor, jobs.assign(number_gpus=1))
    arrays = JobArrays(
        rows=single.rows,
        usable_gib=single.usable_gib,
        tokens_per_sample=jobs["tokens_per_sample"].to_numpy(),
        batch_size=jobs["batch_size"].to_numpy(),
        per_device=np.zeros(len(jobs), bool),
        gpus_per_worker=np.full(len(jobs), GPUS_PER_WORKER),
        min_gpus=np.ones(len(jobs), np.int64),
        max_gpus=np.full(len(jobs), max_gpus),
        even_layouts=np.zeros(len(jobs), bool),
        max_tokens_per_sample=np.full(len(jobs), predictor.domain.max_tokens_per_sample),
    )
    return np.array([(a.gpus or 0) * (a.workers or 0) for a in smallest(predictor, arrays)])


def sweep_space(card: Card) -> pd.DataFrame:
    """The points of ``sweep/examples/space.yaml`` with models of the version."""
    import yaml

    path = Path(__file__).parents[3] / "sweep" / "examples" / "space.yaml"
    space = yaml.safe_load(path.read_text(encoding="utf-8"))["entitySpace"]
    names = [dimension["identifier"] for dimension in space]
    points = itertools.product(*(dimension["propertyDomain"]["values"] for dimension in space))
    table = pd.DataFrame(points, columns=names).assign(gradient_accumulation_steps=4)
    return table[table["model_name"].isin(card.domain.models)].reset_index(drop=True)


# --- the figures ------------------------------------------------------------------------------------------------------


def percent(wrong_or_right: np.ndarray | Booleans) -> float:
    return round(float(100 * np.mean(wrong_or_right)), 4)


def measured(
    predictor: Predictor, families: Mapping[str, str], count: int = JOBS, space: pd.DataFrame | None = None
) -> tuple[Judged, dict[str, Any]]:
    """Evaluate a version.

    Args:
        predictor: the loaded version.
        families: the family of each of its models, to group figures.
        count: number of jobs.
        space: points of a sweep over at most 8 GPUs, from ``sweep_space``; without them that figure is absent.

    Returns:
        The jobs, and the content of a card's ``evaluation``.
    """
    judged = judge(predictor, evaluation_jobs(predictor, count))
    return judged, {
        "jobs": len(judged.jobs),
        "threshold": predictor.card.threshold,
        "figures": main_figures(predictor, judged, space),
        "contradictions": contradictions(predictor, judged.jobs),
        "by_stack": by_group(judged, "stack", _stack_groups(judged.jobs)),
        "by_family": by_group(judged, "family", judged.jobs["model_name"].map(families)),
        "by_setting": by_setting(judged),
        "confusion": confusion(judged),
    }


def main_figures(predictor: Predictor, judged: Judged, space: pd.DataFrame | None) -> dict[str, float]:
    """The figures of ``TARGETS``, as percentages."""
    traced = TracedAnswers(predictor.card, predictor.memory, None)
    most = predictor.domain.max_gpus
    predicted, true = (minimum(p, judged.jobs, most) for p in (predictor, traced))
    harmful = judged.predicted & (judged.headroom_gib < -HARMFUL * judged.candidates.usable_gib)
    figures = {
        SAME_DECISION: percent(judged.predicted == judged.true),
        SAME_MINIMUM: percent(predicted == true),
        HARMFUL_FITS: percent(harmful),
        IMPOSSIBLE: percent(judged.predicted & ~resident_state_fits(judged.candidates)),
    }
    if space is not None:
        sweep_predicted, sweep_traced = (minimum(p, space, 8) for p in (predictor, traced))
        figures[SAME_SWEEP] = percent(sweep_predicted == sweep_traced)
    return {name: figures[name] for name in TARGETS if name in figures}


def contradictions(predictor: Predictor, jobs: pd.DataFrame) -> list[dict[str, Any]]:
    """Count violations of the guaranteed orderings among pairs of jobs; pairs outside the domain are ignored."""
    rows = []
    for what, pair in _PAIRS.items():
        less, more = (_says(predictor, table) for table in pair(jobs))
        both = (less >= 0) & (more >= 0)
        rows.append(
            {"pairs where": what, "pairs": int(both.sum()), "found": int(((less == 0) & (more == 1) & both).sum())}
        )
    return rows


def _says(predictor: Predictor, jobs: pd.DataFrame) -> np.ndarray:
    """1 for "fits", 0 for "does not", -1 for a job outside the domain."""
    predicted = np.full(len(jobs), -1)
    inside = np.flatnonzero(supported(predictor, jobs))
    predicted[inside] = decide(predictor, candidates(predictor, jobs.iloc[inside]))
    return predicted


def confusion(judged: Judged) -> list[dict[str, Any]]:
    """Decisions by distance from the limit."""
    rows = []
    for low, high in ((0, 0.001), (0.001, 0.01), (0.01, 0.02), (0.02, 0.10), (0.10, np.inf)):
        inside = (judged.distance >= low) & (judged.distance < high)
        true, predicted = judged.true[inside], judged.predicted[inside]
        rows.append(
            {
                "distance from the edge": f"{low:.1%} to {high:.1%}" if np.isfinite(high) else f"over {low:.0%}",
                "jobs": int(inside.sum()),
                "fits, said so": int((true & predicted).sum()),
                "fits, said no": int((true & ~predicted).sum()),
                "does not fit, said no": int((~true & ~predicted).sum()),
                "does not fit, said fits": int((~true & predicted).sum()),
            }
        )
    return rows


def by_group(judged: Judged, name: str, groups: pd.Series) -> list[dict[str, Any]]:
    """Decisions by a property of the jobs."""
    rows = []
    for group, index in judged.jobs.groupby(groups, sort=True).indices.items():
        predicted, true = judged.predicted[index], judged.true[index]
        impossible = predicted & ~resident_state_fits(judged.candidates.subset(index))
        rows.append(
            {
                name: group,
                "jobs": len(index),
                "same decision %": percent(predicted == true),
                "impossible %": percent(impossible),
            }
        )
    return rows


def by_setting(judged: Judged) -> list[dict[str, Any]]:
    """Decisions by the settings whose memory is composed in ways of their own."""
    stacks = _stacks(judged.jobs)
    rows: list[dict[str, Any]] = []
    for setting in _COMPOSED:
        values = pd.Series([f"{setting} {getattr(stack, setting)}" for stack in stacks], index=judged.jobs.index)
        rows += by_group(judged, "setting", values)
    return rows


def _stack_groups(jobs: pd.DataFrame) -> pd.Series:
    as_it_is = jobs[list(SETTINGS)].isna().all(axis=1)
    return jobs["stack"].where(as_it_is, jobs["stack"] + ", random settings")
