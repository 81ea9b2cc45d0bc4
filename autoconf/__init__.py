"""AutoConf: the smallest number of GPUs for a fine-tuning job, answered before it runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoconf.errors import AutoConfError, IgnoredColumnWarning
    from autoconf.estimator import Estimate, estimate
    from autoconf.explanation import Explanation, explain
    from autoconf.recommender import recommend
    from autoconf.search import Recommendation, Remedy
    from autoconf.workload import Workload

    __version__: str

__all__ = [
    "AutoConfError",
    "Estimate",
    "Explanation",
    "IgnoredColumnWarning",
    "Recommendation",
    "Remedy",
    "Workload",
    "__version__",
    "estimate",
    "explain",
    "recommend",
]

_HOMES = {
    "AutoConfError": "autoconf.errors",
    "Estimate": "autoconf.estimator",
    "Explanation": "autoconf.explanation",
    "IgnoredColumnWarning": "autoconf.errors",
    "Recommendation": "autoconf.search",
    "Remedy": "autoconf.search",
    "Workload": "autoconf.workload",
    "estimate": "autoconf.estimator",
    "explain": "autoconf.explanation",
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
