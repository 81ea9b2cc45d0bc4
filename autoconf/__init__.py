"""AutoConf: the smallest number of GPUs for a fine-tuning job, before it runs.

Only the names below, ``autoconf.min_gpu_recommender``, ``autoconf.experiments`` and ``autoconf.cli.run`` are public.
"""

from typing import Any

import lazy_loader

from autoconf.predictor.locks import LOADING

# The names and their modules are in __init__.pyi. Every ado process imports this package when it loads its plugins, so
# pandas must not be imported before it is needed.
_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, under a lock: a process forked during an import would wait for it forever."""
    with LOADING:
        return _import(name)
