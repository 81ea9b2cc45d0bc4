"""AutoConf: the smallest number of GPUs for a fine-tuning job, answered before it runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoconf.errors import AutoConfError, IgnoredColumnWarning
    from autoconf.jobs.job import Job, Workload
    from autoconf.planner.avoid_oom import avoid_oom
    from autoconf.planner.estimate import Estimate, estimate
    from autoconf.planner.explanation import Explanation, explain
    from autoconf.planner.gpu_choice import GpuModel, cheapest_gpu
    from autoconf.planner.max_size import LargestBatch, LargestSample, largest_batch, largest_sample
    from autoconf.planner.runner import recommend
    from autoconf.planner.search import Recommendation, Remedy

    __version__: str

__all__ = [
    "AutoConfError",
    "Estimate",
    "Explanation",
    "GpuModel",
    "IgnoredColumnWarning",
    "Job",
    "LargestBatch",
    "LargestSample",
    "Recommendation",
    "Remedy",
    "Workload",
    "__version__",
    "avoid_oom",
    "cheapest_gpu",
    "estimate",
    "explain",
    "largest_batch",
    "largest_sample",
    "recommend",
]

_HOMES = {
    "AutoConfError": "autoconf.errors",
    "Estimate": "autoconf.planner.estimate",
    "Explanation": "autoconf.planner.explanation",
    "GpuModel": "autoconf.planner.gpu_choice",
    "IgnoredColumnWarning": "autoconf.errors",
    "Job": "autoconf.jobs.job",
    "LargestBatch": "autoconf.planner.max_size",
    "LargestSample": "autoconf.planner.max_size",
    "Recommendation": "autoconf.planner.search",
    "Remedy": "autoconf.planner.search",
    "Workload": "autoconf.jobs.job",
    "avoid_oom": "autoconf.planner.avoid_oom",
    "cheapest_gpu": "autoconf.planner.gpu_choice",
    "estimate": "autoconf.planner.estimate",
    "explain": "autoconf.planner.explanation",
    "largest_batch": "autoconf.planner.max_size",
    "largest_sample": "autoconf.planner.max_size",
    "recommend": "autoconf.planner.runner",
}


def __getattr__(name: str) -> Any:
    # Loading ado's plugins imports this package in every ado process; pandas must wait until somebody asks.
    if name == "__version__":
        from importlib.metadata import version

        return version("ado-autoconf")
    if name in _HOMES:
        globals()[name] = getattr(import_module(_HOMES[name]), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
