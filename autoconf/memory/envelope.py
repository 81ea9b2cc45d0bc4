"""Drop dominated rows of a table of linear terms."""

from __future__ import annotations

import numpy as np

from autoconf.memory.units import Booleans, Floats, Integers

_STRONGEST = 12  # rows that all others are compared with first


def undominated(rows: Floats, *, decimals: int) -> Integers:
    """Find the rows that no other row dominates.

    A row dominates another one if it is at least as large in every column and larger in one. If all variables are
    >= 0, a dominated row of coefficients never decides a maximum over rows.

    Args:
        rows: coefficients, shape (rows, columns).
        decimals: rows that are equal after rounding to this many decimals count as one row, the first of them.

    Returns:
        Indices of the remaining rows, in the lexicographic order of their rounded values.

    >>> undominated(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]), decimals=0).tolist()
    [1, 0]
    """
    rounded = np.round(rows, decimals)
    order = np.lexsort(rounded.T[::-1])  # several times as fast as np.unique, with the same result
    new = (np.diff(rounded[order], axis=0) != 0).any(axis=1)
    left = order[np.append(True, new)] if len(order) else order
    # Few rows dominate most of the others, which need not be compared with each other then.
    scales = np.maximum(rows.max(axis=0, initial=0), 1)
    for strongest in (np.argsort((rows[left] / scales).sum(axis=1))[-_STRONGEST:], slice(None)):
        left = left[~_dominated(np.ascontiguousarray(rows[left].T), np.arange(len(left))[strongest])]
    return np.asarray(left, np.int64)


def _dominated(columns: Floats, by: Integers) -> Booleans:
    """Whether each of several different rows is dominated by some of them; ``columns`` has shape (columns, rows)."""
    as_large = np.ones((len(by), columns.shape[1]), bool)
    for column in columns:
        as_large &= column[by, None] >= column
    as_large[np.arange(len(by)), by] = False
    return np.asarray(as_large.any(axis=0))
