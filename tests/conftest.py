"""Fixtures of all tests."""

import pytest
from example_job import EXAMPLE

collect_ignore = ["helpers", "data"]  # other people's scripts among them


@pytest.fixture
def job() -> dict:
    """The job of the examples, to be changed at will."""
    return dict(EXAMPLE)
