"""The one road from jobs to answers: domain -> candidates -> rules -> one predictor call -> the smallest GPU count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoconf.memory.candidates import Candidates
from autoconf.memory.units import GIB, Booleans, Integers
from autoconf.planner import rules
from autoconf.planner.domain import JobArrays, JobColumns, inside, workers
from autoconf.planner.results import Recommendation
from autoconf.predictor.predictor import Predictor


def recommendations(predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
    """The recommendation of one version for each of some valid jobs."""
    placed = inside(predictor, columns)
    return placed.answers(smallest(predictor, placed.jobs), Recommendation)


def decide(predictor: Predictor, candidates: Candidates) -> Booleans:
    """Whether candidates fit, shape (candidates,): the rules, then one predictor call for those that pass them."""
    fits = rules.passing(candidates)
    fits[fits] = predictor.fits(candidates.subset(fits))
    return fits


def even_counts(predictor: Predictor, jobs: JobArrays) -> tuple[Integers, Booleans]:
    """The numbers of GPUs that jobs may use, whatever their batch: within the limits, and the same on every worker.

    Returns:
        Counts, ascending, shape (counts,), and which of them each job may use, shape (jobs, counts).
    """
    limit = np.minimum(jobs.max_gpus, predictor.domain.max_gpus)
    counts = np.arange(1, limit.max(initial=0) + 1)
    even = (counts <= limit[:, None]) & (counts % workers(counts, jobs.gpus_per_worker[:, None]) == 0)
    even &= counts >= jobs.min_gpus[:, None]
    used = even.any(axis=0)
    return counts[used], even[:, used]


def smallest(predictor: Predictor, jobs: JobArrays) -> list[Recommendation]:
    """The smallest candidate that fits, for each job."""
    if not len(jobs.rows):
        return []
    counts, even = even_counts(predictor, jobs)
    job, place = np.nonzero(even & jobs.can_split(counts, predictor.domain.max_batch_size))
    gpus = counts[place]
    tokens_per_gpu = jobs.tokens_per_gpu(job, gpus)
    candidates = Candidates(predictor.memory, jobs.rows[job], gpus, tokens_per_gpu, jobs.usable_gib[job])
    fits = decide(predictor, candidates)
    best = np.zeros(len(jobs.rows), np.int64)
    best[job[fits][::-1]] = gpus[fits][::-1]  # the smallest count is written last
    without = np.flatnonzero(best == 0)
    last = np.searchsorted(job, without, side="right") - 1  # each job's largest candidate
    reasons = iter(_why_not(predictor, candidates.subset(last), jobs, without))
    return [
        Recommendation(1, gpus=total // nodes, workers=nodes)
        if total
        else Recommendation(reason=next(reasons), outcome="fits_nowhere")
        for total, nodes in zip(best.tolist(), workers(best, jobs.gpus_per_worker).tolist(), strict=True)
    ]


def _why_not(predictor: Predictor, largest: Candidates, jobs: JobArrays, which: Integers) -> Sequence[str]:
    """Why some of the jobs have no recommendation, told for the largest number of GPUs that was considered for each."""
    if not len(which):
        return ()
    most, version = predictor.domain.max_gpus, predictor.card.version
    batch_sizes, wanted = jobs.batch_size[which], jobs.max_gpus[which]
    per_device = jobs.per_device[which]
    room = np.where(per_device, predictor.domain.max_batch_size // batch_sizes, most)
    limits, counts = np.minimum(np.minimum(wanted, most), room), np.arange(1, most + 1)
    divides = (per_device[:, None] | (batch_sizes[:, None] % counts == 0)) & (counts <= limits[:, None])
    divisors = np.where(divides, counts, 0).max(axis=1)
    fewest = jobs.min_gpus[which]
    sentences = []
    for cause, each, batch_size, few, max_gpus, limit, divisor, per_worker, gpus in zip(
        causes(largest), per_device, batch_sizes, fewest, wanted, limits, divisors, jobs.gpus_per_worker[which],
        largest.gpus, strict=True,
    ):  # fmt: skip
        ends = f" (where version {version} ends; max_gpus is {max_gpus})" if max_gpus > limit else ""
        conditions = [] if each else [f"divides batch_size {batch_size}"]
        if gpus < divisor:
            conditions.append(f"splits evenly over workers of {per_worker}")
        that = f" that {' and '.join(conditions)}" if conditions else ""
        samples = f" for per_device_train_batch_size {batch_size}" if each else ""
        last = f" (the largest is {gpus})" if gpus < limit else ""
        up_to = f"up to {limit}" if few == 1 else f"from {few} to {limit}"
        sentences.append(f"no number of GPUs {up_to}{ends}{that} is enough{samples}{last}: {cause}")
    return sentences


def causes(candidates: Candidates) -> list[str]:
    """Why candidates that do not fit do not: the rule that they break, or where their peak lies."""
    peaks = candidates.memory.peak_bytes(candidates.rows, candidates.gpus, candidates.tokens_per_gpu) / GIB
    broken_rules = rules.reasons(candidates)
    return [
        broken_rule
        or f"training peaks near {peak:.1f} GiB {rules.on_each(gpus)}, which leaves too little of {usable:g} GiB"
        for broken_rule, gpus, peak, usable in zip(
            broken_rules, candidates.gpus, peaks, candidates.usable_gib, strict=True
        )
    ]
