"""Locks that a forked process never inherits while another thread holds them.

A fork waits until no other thread loads a version or predicts. So the child process inherits no held lock, no partly
imported library and no unfinished prediction, and answers like any other process.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401 - both take locks before a fork; hooks run in reverse, so ours must be registered last
import os
import threading
from types import TracebackType

_LONGEST_WAIT = 60.0  # seconds that a fork waits for a loading thread, which a hook of a library may block


class Lock:
    """A reentrant lock that can be renewed after a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def acquire(self, timeout: float = -1) -> bool:
        """Acquire the lock, waiting at most this many seconds; return whether it was acquired."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def renew(self) -> None:
        """Replace the lock by a free one: in a forked process, no thread holds it."""
        self._lock = threading.RLock()


# Acquired in this order: loading a version may predict.
LOADING = Lock()  # held while a version is loaded, rebuilt or recorded, and its libraries are imported
PREDICTING = Lock()  # held while AutoGluon predicts with a limited number of OpenMP threads, or pyarrow reads profiles


_held: list[Lock] = []  # the locks that the forking thread holds


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
