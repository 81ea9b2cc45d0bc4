"""The exceptions that AutoConf raises in addition to ``ValueError``.

An invalid value raises a ``ValueError`` that names its field. A job without a recommendation is an answer, not an
exception.

The hierarchy of exceptions that callers can see:

* ValueError
  + BadInput: an invalid file, option or folder
    - NotDocuments: a file that is neither YAML nor JSON
  + Unsupported: a configuration without a memory profile; queries turn it into the reason of an answer
* RuntimeError
  + AutoConfError: a broken installation or environment
    - NoModelsFolder: a user version was requested, but no folder of user versions is known; in a table, a reason
* UserWarning
  + IgnoredColumnWarning: an ignored column of a table that looks like a misspelled field
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_PROBLEMS = 20  # the most problems that one message lists


class AutoConfError(RuntimeError):
    """A broken installation or environment; never an answer to a job."""


class BadInput(ValueError):
    """Invalid user input: a file or an option. The message has a line for each problem."""

    @classmethod
    def listing(cls, problems: Sequence[str], source: str, others: str) -> BadInput:
        """Make an error that lists the first 20 of many problems and counts the others.

        Args:
            problems: a sentence for each problem.
            source: the name of the file in messages.
            others: the name of the others, such as "more bad lines".

        >>> problems = [f"jobs.csv, line {line}: no number" for line in range(2, 27)]
        >>> print(str(BadInput.listing(problems, "jobs.csv", "more bad lines")).splitlines()[-1])
        jobs.csv: 5 more bad lines
        """
        listed = [*problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            listed.append(f"{source}: {len(problems) - MOST_PROBLEMS} {others}")
        return cls("\n".join(listed))


class IgnoredColumnWarning(UserWarning):
    """An ignored column of a table that looks like a misspelled field or a setting of the training stack."""
