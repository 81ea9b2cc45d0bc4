"""Importing heavy libraries at the price of their own work."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Import and unpickle without looking for garbage among what stays.

    Some hundred thousand objects are made, and looked at again and again as more come: a sixth of the first call.
    Afterwards they count as old, as if each had been looked at in vain. Where the host process has frozen objects of
    its own, those must stay frozen, and the new ones are looked at once.

    >>> with no_garbage_collection():
    ...     gc.isenabled()
    False
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # to the oldest generation
            gc.enable()
