"""Locks that a forked process never inherits while another thread holds them.

Who forks waits until no other thread loads a version or predicts. So the child finds no lock held, no half-imported
library and no half-finished prediction, and answers like any other process.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401 - both lock before a fork, too: hooks run in reverse, so that ours must come after theirs
import os
import threading
from types import TracebackType

_LONGEST_WAIT = 60.0  # seconds that a fork waits for a thread that loads; a library's own hook may keep that thread


class Lock:
    """A lock for one thread at a time, which the same thread may take again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, timeout: float = -1) -> bool:
        """Take it, waiting at most so many seconds; whether it was taken."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def renew(self) -> None:
        """Forget who holds it: in a forked process, nobody does."""
        self._lock = threading.RLock()


# Taken in this order: a version that is loaded may predict.
LOADING = Lock()  # a version is loaded, rebuilt or noted; libraries are imported for it
PREDICTING = Lock()  # AutoGluon predicts; the number of OpenMP threads, which is the process's, is limited meanwhile


_held: list[Lock] = []  # by the thread that forks


def _before_fork() -> None:
    _held[:] = [lock for lock in (LOADING, PREDICTING) if lock.acquire(_LONGEST_WAIT)]


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    _held.clear()
    LOADING.renew()
    PREDICTING.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
