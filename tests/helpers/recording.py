"""Bytes that ops on fake tensors hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoconf.pipeline.validation import rank_trace


@contextmanager
def recorded(tokens: int, *resident: torch.Tensor) -> Iterator[rank_trace._Recorder]:
    """Count what ops add to tensors that are there already; a tensor of tokens x tokens raises."""
    recorder = rank_trace._Recorder(tokens)
    for tensor in resident:
        recorder.see(tensor, "resident")
    recorder.live = 0
    recorder.moments.clear()
    with recorder:
        yield recorder


def peak(recorder: rank_trace._Recorder) -> int:
    """The most that was held since the recorder's moments were last cleared."""
    return max((live for _, live, _ in recorder.moments), default=0)


@contextmanager
def saved_for_backward() -> Iterator[list[torch.Tensor]]:
    """Collect what autograd saves."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved
