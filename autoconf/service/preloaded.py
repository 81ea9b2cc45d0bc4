"""Load the default version when this module is imported: by the process from which all workers are forked.

One job is answered here, so that the first answer of a worker is as fast as later ones.
"""

from contextlib import suppress

from autoconf.errors import AutoConfError
from autoconf.jobs.queries import MIN_GPUS, THROUGHPUT
from autoconf.service.queries import answer_job, example
from autoconf.service.tasks import Task  # noqa: F401 - the workers need the module, too

with suppress(AutoConfError):  # each worker loads the version again, and reports the error
    answer_job("recommend", example(MIN_GPUS))
    answer_job("throughput", example(THROUGHPUT))
