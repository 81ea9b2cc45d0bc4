"""AutoConf: the smallest number of GPUs for a fine-tuning job, answered before it runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoconf.capacity import LargestBatch, LargestSample, largest_batch, largest_sample
    from autoconf.errors import AutoConfError, IgnoredColumnWarning
    from autoconf.estimator import Estimate, estimate
    from autoconf.explanation import Explanation, explain
    from autoconf.gpu_models import GpuModel, cheapest_gpu
    from autoconf.recommender import recommend
    from autoconf.requests import avoid_oom
    from autoconf.search import Recommendation, Remedy
    from autoconf.workload import Job, Workload

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
    "Estimate": "autoconf.estimator",
    "Explanation": "autoconf.explanation",
    "GpuModel": "autoconf.gpu_models",
    "IgnoredColumnWarning": "autoconf.errors",
    "Job": "autoconf.workload",
    "LargestBatch": "autoconf.capacity",
    "LargestSample": "autoconf.capacity",
    "Recommendation": "autoconf.search",
    "Remedy": "autoconf.search",
    "Workload": "autoconf.workload",
    "avoid_oom": "autoconf.requests",
    "cheapest_gpu": "autoconf.gpu_models",
    "estimate": "autoconf.estimator",
    "explain": "autoconf.explanation",
    "largest_batch": "autoconf.capacity",
    "largest_sample": "autoconf.capacity",
    "recommend": "autoconf.recommender",
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
