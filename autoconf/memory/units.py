"""Units and array types that every memory module shares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

GIB = 2**30

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


class Outside(NamedTuple):
    """A way to train that figures do not know: what was asked for, and why it has none."""

    asked: tuple[str, ...]
    why: str  # goes on after the version's name
