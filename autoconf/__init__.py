"""AutoConf: the smallest number of GPUs for a fine-tuning job, before it runs.

Only the names below, ``autoconf.min_gpu_recommender``, ``autoconf.experiments`` and ``autoconf.cli.run`` are public.
"""

import lazy_loader

# The names and their modules are in __init__.pyi. Loading ado's plugins imports this package in every ado process, so
# that pandas must wait until somebody asks.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
