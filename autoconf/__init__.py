"""AutoConf: the smallest number of GPUs for a fine-tuning job, before it runs.

Only the names below, ``autoconf.min_gpu_recommender``, ``autoconf.experiments`` and ``autoconf.cli.run`` are public.
"""

from typing import Any

import lazy_loader

from autoconf.predictor.locks import LOADING

# The names and their modules are in __init__.pyi. Loading ado's plugins imports this package in every ado process, so
# that pandas must wait until somebody asks.
_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; a process that is forked meanwhile would wait for it for ever."""
    with LOADING:
        return _import(name)
