"""The exceptions that AutoConf raises, apart from ``ValueError``.

A value that can never be right raises a ``ValueError`` that names its field. That a job has no recommendation is an
answer, and no exception.

The hierarchy of what reaches a caller:

* ValueError
  + BadInput: a file, an option or a folder of the user's
    - NotDocuments: a file that is neither YAML nor JSON
  + Unsupported: a configuration that a version has no figures for; ``recommend`` and the others make it a reason
* RuntimeError
  + AutoConfError: a broken installation or environment
    - NoModelsFolder: a user version is asked for, and there is no folder of user versions; in a table, a reason
* UserWarning
  + IgnoredColumnWarning: a column of a table that looks as if it were meant to count
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_PROBLEMS = 20  # that one message lists


class AutoConfError(RuntimeError):
    """Something in the installation or the environment is broken; never an answer to a job."""


class BadInput(ValueError):
    """A file or an option that the user gave cannot be right; the message has a line for each problem."""

    @classmethod
    def listing(cls, problems: Sequence[str], source: str, others: str) -> BadInput:
        """An error of many problems, of which the first 20 are listed and the others counted.

        Args:
            problems: a sentence for each.
            source: what messages call the file.
            others: what the others are called.

        >>> problems = [f"jobs.csv, line {line}: no number" for line in range(2, 27)]
        >>> print(str(BadInput.listing(problems, "jobs.csv", "more bad lines")).splitlines()[-1])
        jobs.csv: 5 more bad lines
        """
        listed = [*problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            listed.append(f"{source}: {len(problems) - MOST_PROBLEMS} {others}")
        return cls("\n".join(listed))


class IgnoredColumnWarning(UserWarning):
    """A table has a column that is ignored, but looks as if it were meant to count."""
