"""Units and array types of the memory modules, and the error for a job without a memory profile.

Arrays are named by their dimensions:

- ``jobs``: jobs of a table.
- ``candidates``: jobs, each on one number of GPUs.
- ``gpus``: the numbers of GPUs of candidates, or consecutive numbers of GPUs.
- ``moments``: points in time of a training step at which memory can peak.

Memory is in bytes inside this package, and in GiB (2**30 bytes) if a name ends in ``_gib``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoconf.jobs.names import listed

GIB = 2**30

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


class Unsupported(ValueError):
    """A configuration without a memory profile.

    Args:
        settings: the unsupported settings, such as ``optim 'adafactor'``.
        why: the end of the sentence of ``reason``, which says why there is no profile.

    >>> Unsupported(["optim 'adafactor'", "sharding 'fsdp2'"], ": it does not step").reason("2.0.0")
    "optim 'adafactor' and sharding 'fsdp2' are not in the domain of version 2.0.0: it does not step"
    """

    def __init__(self, settings: Sequence[str], why: str) -> None:
        self.settings, self.why = tuple(settings), why
        super().__init__(self._sentence("supported"))

    def reason(self, version: str) -> str:
        """The reason why a version does not support the settings, as a sentence for users."""
        return self._sentence(f"in the domain of version {version}")

    def _sentence(self, what: str) -> str:
        return f"{listed(self.settings)} {'are' if len(self.settings) > 1 else 'is'} not {what}{self.why}"
