"""Drop dominated rows of a table of linear terms."""

from __future__ import annotations

import numpy as np

from autoconf.memory.units import Booleans, Floats, Integers

_AT_ONCE = 12  # rows that all others are compared with at once


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
    if len(rows) < 2:
        return np.arange(len(rows))
    rounded = np.round(rows, decimals)
    varying = np.flatnonzero((rows != rows[0]).any(axis=0))
    keys = rounded[:, varying]
    order = np.lexsort(keys.T[::-1]) if len(varying) else np.arange(1)  # several times as fast as np.unique
    new = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    left = order[np.append(True, new)]
    columns = np.ascontiguousarray(rows[:, varying].T)
    if len(varying) == 2:
        return np.asarray(left[~_dominated_in_two(*columns.take(left, axis=1))], np.int64)
    scales = np.maximum(columns.max(axis=1, initial=0), 1)
    columns = columns.take(left, axis=1)
    strength = np.argsort(-(columns / scales[:, None]).sum(axis=0))
    left, columns = left[strength], columns.take(strength, axis=1)
    first = 0
    while first < len(left):  # few rows dominate most of the others, which need not be compared with each other then
        others = ~_dominated(columns, np.arange(first, min(first + _AT_ONCE, len(left))))
        first = int(others[: first + _AT_ONCE].sum())
        left, columns = left[others], columns.compress(others, axis=1)
    kept = np.zeros(len(rows), bool)
    kept[left] = True
    return np.asarray(order[kept[order]], np.int64)


def _dominated_in_two(first: Floats, second: Floats) -> Booleans:
    """Whether each of several different rows is dominated by another; the rows have two columns."""
    order = np.lexsort((second, first))[::-1]
    found = np.zeros(len(first), bool)
    found[order[1:]] = second[order[1:]] <= np.maximum.accumulate(second[order])[:-1]
    return found


def _dominated(columns: Floats, by: Integers) -> Booleans:
    """Whether each of several different rows is dominated by some of them; ``columns`` has shape (columns, rows)."""
    as_large = np.ones((len(by), columns.shape[1]), bool)
    for column in columns:
        as_large &= column[by, None] >= column
    as_large[np.arange(len(by)), by] = False
    return np.asarray(as_large.any(axis=0))
