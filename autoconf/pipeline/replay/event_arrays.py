"""The events of programs as arrays, in which large numbers of them are replayed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autoconf.memory.replay import Event
from autoconf.memory.units import Integers


class EventArrays(NamedTuple):
    """The events of a program as arrays of shape (events,); see ``autoconf.memory.replay.Event``."""

    actions: Integers
    blocks: Integers
    nbytes: Integers
    streams: Integers


def as_arrays(events: Sequence[Event]) -> EventArrays:
    """Convert the events of a program.

    >>> as_arrays([Event(action=0, block=0, nbytes=512)]).nbytes.tolist()
    [512]
    """
    table = np.array([(event.action, event.block, event.nbytes, event.stream) for event in events], np.int64)
    return EventArrays(*np.ascontiguousarray(table.T))
