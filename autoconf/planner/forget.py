"""Bound what a process that answers for a long time remembers."""

from __future__ import annotations

from autoconf.memory.model import StackMemory
from autoconf.planner import domain, frontier
from autoconf.predictor import registry


def forget_beyond(most: int) -> None:
    """Drop the memory composed for earlier jobs if a version has more than ``most`` models under training stacks.

    Later answers are the same; they compose it again. No other thread may be answering.

    Args:
        most: Models under stacks, >= 0; each takes about 9 KB.
    """
    memories = [one.memory for one in registry.loaded() if isinstance(one.memory, StackMemory)]
    if any(len(memory) > most for memory in memories):
        frontier.forget()
        domain.forget()
        for memory in memories:
            memory.forget()
