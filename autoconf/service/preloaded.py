"""Load the default version when this module is imported: by the process from which all workers are forked."""

from contextlib import suppress

import autoconf.service.tasks  # noqa: F401 - the workers need it, too
from autoconf.errors import AutoConfError
from autoconf.predictor import registry

with suppress(AutoConfError):  # each worker loads it again, and reports the error
    registry.load(registry.DEFAULT)
