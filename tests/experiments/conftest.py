"""Fixtures of tests that run ado and Ray."""

from ado_context import ado_context, toy_experiment  # noqa: F401 - fixtures
