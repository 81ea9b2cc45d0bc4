"""Fixtures of all tests."""

import pytest
from example_job import EXAMPLE

collect_ignore = ["helpers", "data"]  # including scripts of other projects


@pytest.fixture
def job() -> dict:
    """The job of the examples; a test may change it."""
    return dict(EXAMPLE)
