"""Compare the profiles of two models."""

import numpy as np

from autoconf.memory.profile import ModelProfile


def assert_same_figures(one: ModelProfile, other: ModelProfile) -> None:
    """Compare everything except the models' names and digests."""
    assert one.units == other.units
    for found, expected in ((one.layers, other.layers), (one.heads, other.heads)):
        assert set(found) == set(expected)
        for way in found:
            np.testing.assert_array_equal(found[way], expected[way])
    assert {tuple(map(str, key)): why for key, why in one.problems.items()} == {
        tuple(map(str, key)): why for key, why in other.problems.items()
    }
