"""Keep the rows of a table of linear terms that can be the largest; drop the others."""

from __future__ import annotations

import numpy as np

from autoconf.memory.units import Floats, Integers


def undominated(rows: Floats, *, decimals: int) -> Integers:
    """Find the rows that no other row dominates.

    A row dominates another one if it is at least as large in every column and larger in one. A dominated row of
    coefficients can be dropped from a maximum over rows, whatever the variables (all >= 0) are.

    Args:
        rows: coefficients, shape (rows, columns).
        decimals: rows that are equal when rounded to so many decimals count as one row: the first of them.

    Returns:
        Indices of the rows that are left, in the lexicographic order of their rounded values.

    >>> undominated(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]), decimals=0).tolist()
    [1, 0]
    """
    _, distinct = np.unique(np.round(rows, decimals), axis=0, return_index=True)
    values = rows[distinct]
    # A row comes after every row that dominates it. So the first one that is left is never dominated, and few are.
    left = np.lexsort(values.T[::-1])[::-1]
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        left = left[(values[left] > values[first]).any(axis=1)]
    return np.asarray(distinct[np.sort(kept)], np.int64) if kept else np.zeros(0, np.int64)
