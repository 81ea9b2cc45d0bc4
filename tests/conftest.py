"""Shared fixtures: real ado, real Ray, the shipped predictor."""

import os

# A Ray cluster that happens to run on this machine is not the tests' to use. Ray reads this when it starts.
os.environ["RAY_ADDRESS"] = "local"

import pytest
from example_job import EXAMPLE

from ado_context import ado_context, toy_experiment  # noqa: F401 - fixtures


@pytest.fixture
def job() -> dict:
    """The job of the examples, to be changed at will."""
    return dict(EXAMPLE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first, so that of two processes none waits for the other at the end."""
    items.sort(key=lambda item: item.path.name != "test_your_own.py")
