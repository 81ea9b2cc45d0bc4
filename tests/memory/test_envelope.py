"""Undominated rows of linear terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoconf.memory.envelope import undominated

TABLES = arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(1, 4)), elements=st.integers(0, 3).map(float))


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one >= other).all() and (one > other).any())


@given(TABLES)
def test_exactly_the_rows_that_no_other_dominates_are_kept_each_once(rows):
    kept = rows[undominated(rows, decimals=0)]
    expected = {tuple(row) for row in rows if not any(dominates(other, row) for other in rows)}
    assert sorted(map(tuple, kept)) == sorted(expected)


@given(TABLES)
def test_the_largest_sum_is_kept_for_all_variables(rows):
    kept = rows[undominated(rows, decimals=0)]
    for variables in np.random.default_rng(0).random((5, rows.shape[1])):
        assert (kept @ variables).max(initial=0) == pytest.approx((rows @ variables).max(initial=0))


def test_rows_that_round_to_the_same_count_as_the_first_of_them():
    rows = np.array([[1.2, 5.0], [1.4, 5.0], [9.0, 1.0]])
    assert undominated(rows, decimals=0).tolist() == [0, 2]
    assert undominated(rows, decimals=1).tolist() == [1, 2]


def test_sums_that_floating_point_cannot_tell_apart_do_not_hide_a_row():
    rows = np.array([[1e17, 1.0], [1e17, 2.0]])
    assert undominated(rows, decimals=0).tolist() == [1]
