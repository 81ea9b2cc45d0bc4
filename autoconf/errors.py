"""Errors and warnings of the package. A job without a recommendation is an answer, not an error."""

from __future__ import annotations


class AutoConfError(RuntimeError):
    """A broken installation or environment; never an answer to a job."""


class BadInput(ValueError):
    """Invalid user input: a file or an option. The message has a line for each problem."""


class IgnoredColumnWarning(UserWarning):
    """An ignored column of a table that looks like a misspelled field or a setting of the training stack."""
