"""AutoConf: the smallest number of GPUs for a fine-tuning job, answered before it runs."""

from importlib.metadata import PackageNotFoundError, version

from autoconf.errors import AutoConfError
from autoconf.recommender import Recommendation, recommend
from autoconf.workload import Workload

try:
    __version__ = version("ado-autoconf")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "unknown"

__all__ = ["AutoConfError", "Recommendation", "Workload", "__version__", "recommend"]
