"""Check the extra [build], which commands that trace need."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from autoconf.errors import BadInput
from autoconf.jobs.names import listed

_EXTRA = ("accelerate", "bitsandbytes", "peft", "torch", "transformers")


def check_build_extra(command: str) -> None:
    """Check that the libraries for tracing are installed, and silence their warnings.

    Raises:
        BadInput: a library is missing; the message has the lines that install them.
    """
    missing = [package for package in _EXTRA if find_spec(package) is None]
    if missing:
        raise BadInput(
            f"{command} needs the extra [build]: in a clone of the project run pip install torch==2.13.0 and "
            f"pip install '.[build]' ({listed(missing)} not found)"
        )
    # bitsandbytes warns that a kernel for CPUs is missing, but nothing is computed here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
