"""What can go wrong, apart from bad input (``ValueError``) and from having no recommendation (an answer)."""

from __future__ import annotations


class AutoConfError(RuntimeError):
    """Something in the installation or the environment is broken; never an answer to a job."""


class BadInput(ValueError):
    """A file or an option that the user gave cannot be right; the message has a line for each problem."""


class IgnoredColumnWarning(UserWarning):
    """A table has a column that is ignored, but looks as if it were meant to count."""
