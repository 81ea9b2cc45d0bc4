"""Locks that a forked process never inherits while another thread holds them.

Who forks waits until no other thread loads a version or predicts. So the child finds no lock held, no half-imported
library and no half-finished prediction, and answers like any other process.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType


class Lock:
    """A lock for one thread at a time, which the same thread may take again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Forget who holds it: in a forked process, nobody does."""
        self._lock = threading.RLock()


# Taken in this order: a version that is loaded may predict.
LOADING = Lock()  # a version is loaded, rebuilt or noted; libraries are imported for it
PREDICTING = Lock()  # AutoGluon predicts; the number of OpenMP threads, which is the process's, is limited meanwhile


def _before_fork() -> None:
    LOADING.__enter__()
    PREDICTING.__enter__()


def _after_fork_in_parent() -> None:
    PREDICTING.__exit__(None, None, None)
    LOADING.__exit__(None, None, None)


def _after_fork_in_child() -> None:
    LOADING.renew()
    PREDICTING.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
