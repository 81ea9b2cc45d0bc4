"""Record the memory of ops on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoconf.pipeline.tracing.recorder import Recorder


@contextmanager
def recorded(tokens: int, *resident: torch.Tensor) -> Iterator[Recorder]:
    """Record the memory that ops add to existing tensors; a tensor of tokens x tokens raises."""
    recorder = Recorder(tokens)
    for tensor in resident:
        recorder.see(tensor)
    recorder.live = 0
    recorder.changes.clear()
    with recorder:
        yield recorder


def peak(recorder: Recorder) -> int:
    """The peak since the recorder's changes were last cleared."""
    return max((change.live for change in recorder.changes), default=0)


@contextmanager
def saved_for_backward() -> Iterator[list[torch.Tensor]]:
    """Collect the tensors that autograd saves."""
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved
