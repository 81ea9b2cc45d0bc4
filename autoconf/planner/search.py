"""Find the smallest number of GPUs: domain -> candidates -> rules -> one predictor call -> smallest count that fits."""

from __future__ import annotations

import numpy as np

from autoconf.memory.candidates import Candidates
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB, Booleans, Integers
from autoconf.planner import rules
from autoconf.planner.domain import JobArrays, JobColumns, inside, workers
from autoconf.planner.results import Recommendation
from autoconf.predictor.predictor import Predictor

_LONG = 1_000  # jobs from which on it is faster to ask twice


def recommendations(predictor: Predictor, columns: JobColumns) -> list[Recommendation]:
    """Recommend for valid jobs with one version."""
    placed = inside(predictor, columns)
    return placed.answers(smallest(predictor, placed.jobs), Recommendation)


def decide(predictor: Predictor, candidates: Candidates) -> Booleans:
    """Whether each candidate fits, by the rules, then by one predictor call for all that pass; shape (candidates,)."""
    fits = rules.passing(candidates)
    fits[fits] = predictor.fits(candidates.subset(fits))
    return fits


def even_counts(predictor: Predictor, jobs: JobArrays) -> tuple[Integers, Booleans]:
    """The numbers of GPUs that jobs may use regardless of their batch: within limits, and the same on every worker.

    Returns:
        Counts, ascending, shape (counts,), and whether each job may use each of them, shape (jobs, counts).
    """
    limit = np.minimum(jobs.max_gpus, predictor.domain.max_gpus)
    counts = np.arange(1, limit.max(initial=0) + 1)
    per_worker, places = np.unique(jobs.gpus_per_worker, return_inverse=True)  # jobs have few different ones
    splits = counts % workers(counts, per_worker[:, None]) == 0
    even: Booleans = splits[places]
    even &= (counts <= limit[:, None]) & (counts >= jobs.min_gpus[:, None])
    if jobs.even_layouts.any():
        even &= ~jobs.even_layouts[:, None] | _customary(counts, per_worker[:, None])[places]
    used = even.any(axis=0)
    return counts[used], even[:, used]


def _customary(counts: Integers, gpus_per_worker: Integers) -> Booleans:
    """Whether numbers of GPUs are powers of two on one worker, or full workers, as is customary on clusters."""
    powers_of_two = counts & (counts - 1) == 0
    customary: Booleans = np.where(counts < gpus_per_worker, powers_of_two, counts % gpus_per_worker == 0)
    return customary


def smallest(predictor: Predictor, jobs: JobArrays) -> list[Recommendation]:
    """Find the smallest candidate of each job that fits."""
    if not len(jobs.rows):
        return []
    counts, even = even_counts(predictor, jobs)
    allowed = even & jobs.can_split(counts, predictor.domain.max_batch_size)
    tried = allowed if len(allowed) < _LONG else _worth_trying(predictor, jobs, counts, allowed)
    job, place = np.nonzero(tried)
    gpus = counts[place]
    fits = decide(predictor, jobs.candidates(predictor.memory, job, gpus))
    best = np.zeros(len(jobs.rows), np.int64)
    best[job[fits][::-1]] = gpus[fits][::-1]  # the smallest count is written last
    without = np.flatnonzero(best == 0)
    reasons = iter(_why_not(predictor, jobs, without, counts, allowed) if len(without) else ())
    nodes = workers(best, jobs.gpus_per_worker).tolist()
    hosts = _host_gib(predictor, jobs, best) if predictor.knows_host else [0.0] * len(best)
    return [
        Recommendation(1, gpus=total // on, workers=on, host_memory_gib=host or None)
        if total
        else Recommendation(reason=next(reasons), outcome="fits_nowhere")
        for total, on, host in zip(best.tolist(), nodes, hosts, strict=True)
    ]


def _last(allowed: Booleans) -> Integers:
    """The place of the largest number of GPUs that each job may use, shape (jobs,)."""
    return np.asarray(allowed.shape[1] - 1 - allowed[:, ::-1].argmax(axis=1))


def _worth_trying(predictor: Predictor, jobs: JobArrays, counts: Integers, allowed: Booleans) -> Booleans:
    """The candidates of a long table, without jobs that fit neither on one GPU nor on the most that they may use.

    Args:
        predictor: the version.
        jobs: the jobs.
        counts: numbers of GPUs, shape (counts,).
        allowed: whether each job may use each of them, shape (jobs, counts), at least one of them.

    Returns:
        Shape (jobs, counts).
    """
    if not isinstance(predictor.memory, StackMemory) or jobs.host_limit_gib is not None:
        return allowed
    job, place = np.nonzero(ends(predictor.memory, jobs, counts, allowed))
    fits = decide(predictor, jobs.candidates(predictor.memory, job, counts[place]))
    fitting = np.zeros(len(allowed), bool)
    fitting[job[fits]] = True
    return allowed & fitting[:, None]


def ends(memory: StackMemory, jobs: JobArrays, counts: Integers, allowed: Booleans) -> Booleans:
    """The numbers of GPUs of which one needs the least of each GPU: one, and the largest; arguments as above."""
    found: Booleans = allowed & (counts == 1)
    found[np.arange(len(found)), _last(allowed)] = True
    found |= allowed & ~memory.falls_with_gpus(jobs.rows)[:, None]
    return found


def _host_gib(predictor: Predictor, jobs: JobArrays, gpus: Integers) -> list[float]:
    """The memory that the host of one worker needs for each job, in GiB; 0 for jobs on no GPUs."""
    found = np.zeros(len(gpus))
    which = np.flatnonzero(gpus)
    found[which] = jobs.candidates(predictor.memory, which, gpus[which]).host_gib()
    gib: list[float] = found.tolist()
    return gib


def _why_not(predictor: Predictor, jobs: JobArrays, which: Integers, counts: Integers, allowed: Booleans) -> list[str]:
    """The reasons why some of the jobs have no recommendation, for the largest number of GPUs that was considered."""
    largest = jobs.candidates(predictor.memory, which, counts[_last(allowed[which])])
    refused, version = jobs.subset(which), predictor.card.version
    limits = _limits(predictor, refused)
    counts = np.arange(1, predictor.domain.max_gpus + 1)
    divides = refused.per_device[:, None] | refused.divisible(counts)
    # The largest number that would be considered without the condition that it splits evenly over workers.
    divisors = np.where(divides & (counts <= limits[:, None]), counts, 0).max(axis=1)
    return [
        f"no number of GPUs {_range(refused, index, limits[index], version)}"
        f"{_conditions(refused, index, uneven=largest.gpus[index] < divisors[index])}"
        f"{f' (the largest is {largest.gpus[index]})' if largest.gpus[index] < limits[index] else ''}: {cause}"
        for index, cause in enumerate(causes(largest))
    ]


def _limits(predictor: Predictor, jobs: JobArrays) -> Integers:
    """The most GPUs that may be considered for each job: its own limit, or that of the domain."""
    domain = predictor.domain
    room = np.where(jobs.per_device, domain.max_batch_size // jobs.batch_size, domain.max_gpus)
    limits: Integers = np.minimum(np.minimum(jobs.max_gpus, domain.max_gpus), room)
    return limits


def _range(jobs: JobArrays, index: int, limit: int, version: str) -> str:
    fewest, most = jobs.min_gpus[index], jobs.max_gpus[index]
    ends = f" (where version {version} ends; max_gpus is {most})" if most > limit else ""
    return f"up to {limit}{ends}" if fewest == 1 else f"from {fewest} to {limit}{ends}"


def _conditions(jobs: JobArrays, index: int, *, uneven: bool) -> str:
    """The middle of a reason: the conditions on the number of GPUs, and that no such number is enough."""
    batch_size, per_worker = jobs.batch_size[index], jobs.gpus_per_worker[index]
    each = jobs.per_device[index]
    conditions = [] if each else [f"divides batch_size {batch_size}"]
    if uneven and jobs.even_layouts[index]:
        conditions.append(f"is a power of two up to {per_worker} or full workers of {per_worker}")
    elif uneven:
        conditions.append(f"splits evenly over workers of {per_worker}")
    that = f" that {' and '.join(conditions)}" if conditions else ""
    return f"{that} is enough{f' for per_device_train_batch_size {batch_size}' if each else ''}"


def causes(candidates: Candidates) -> list[str]:
    """The causes why candidates do not fit: the rule that each breaks, or its peak."""
    sentences = rules.reasons(candidates)
    unbroken = np.array([index for index, sentence in enumerate(sentences) if not sentence], np.int64)
    rest = candidates.subset(unbroken)
    peaks = rest.memory.peak_bytes(rest.rows, rest.gpus, rest.tokens_per_gpu) / GIB
    for index, peak, gpus, usable in zip(unbroken.tolist(), peaks, rest.gpus, rest.usable_gib, strict=True):
        where = rules.on_each(gpus)
        sentences[index] = f"training peaks near {peak:.1f} GiB {where}, which leaves too little of {usable:g} GiB"
    return sentences
