"""Activation offloading as TRL 1.9.0 runs it with its two streams, without a GPU.

trl/models/activation_offloading.py, OffloadActivations, needs streams of CUDA. Here the same hooks keep and release the
same tensors of the GPU; what they move to the host is not kept, only its shape, so that no recorder counts it. Copies
take no time: a tensor waits for its release as long as TRL's rules say, which does not depend on when a copy ends.
torchtune 0.6.1 has the same rules (torchtune/training/_activation_offloading.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

MIN_OFFLOAD_SIZE, MAX_FWD_STASH_SIZE = 1024, 5  # bytes, and tensors: the defaults of get_act_offloading_ctx_manager


@dataclass(frozen=True)
class OnHost:
    """What is left of a tensor that is on the host."""

    shape: torch.Size
    dtype: torch.dtype

    def back(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype)


class OffloadActivations(saved_tensors_hooks):
    """The hooks, with the names of TRL's fields."""

    def __init__(self) -> None:
        self.tensor_id = 0
        self.tracker: dict[int, torch.Tensor | OnHost] = {}
        self.fwd_stash: dict[int, torch.Tensor] = {}
        self.bwd_tensor_stash: dict[int, torch.Tensor] = {}
        self.curr_autograd_node: Any = None
        super().__init__(self.pack_tensor, self.unpack_tensor_with_streams)

    def pack_tensor(self, activation: torch.Tensor) -> int:
        """Save a tensor for the backward pass."""
        self.tensor_id += 1
        self.tracker[self.tensor_id] = activation
        # storage_to_tensor_id: only the storage of a tensor in the stash is known there.
        storages = [other.untyped_storage()._cdata for other in self.fwd_stash.values()]
        stays = (
            activation.untyped_storage()._cdata in storages
            or activation.nbytes < MIN_OFFLOAD_SIZE
            or isinstance(activation, (nn.Parameter, nn.Buffer))
        )
        if not stays:
            for older in list(self.fwd_stash):
                if older > self.tensor_id - MAX_FWD_STASH_SIZE:
                    break
                del self.fwd_stash[older]
            self.tracker[self.tensor_id] = OnHost(activation.shape, activation.dtype)
            self.fwd_stash[self.tensor_id] = activation
        return self.tensor_id

    def unpack_tensor_with_streams(self, unpack_tensor_id: int) -> torch.Tensor:
        """Give a saved tensor to the backward pass."""
        found = self.tracker.pop(unpack_tensor_id)
        if isinstance(found, torch.Tensor):
            return found
        if not self.bwd_tensor_stash and self.curr_autograd_node is None:
            torch.autograd.variable.Variable._execution_engine.queue_callback(self._end)  # type: ignore[attr-defined]
        node = torch._C._current_autograd_node()
        previous = list(self.bwd_tensor_stash) if node is not self.curr_autograd_node else []
        self.curr_autograd_node = node
        if unpack_tensor_id in self.fwd_stash:
            tensor = self.fwd_stash[unpack_tensor_id]
        else:
            tensor = self.bwd_tensor_stash[unpack_tensor_id] = found.back()

        def hook(outputs: Any, inputs: Any) -> Any:
            self.fwd_stash.clear()
            for other in previous:
                self.bwd_tensor_stash.pop(other, None)
            return outputs

        node.register_hook(hook)
        return tensor

    def _end(self) -> None:
        """wait_and_del_remaining_references, at the end of a backward pass."""
        self.bwd_tensor_stash.clear()
        self.curr_autograd_node = None


@contextmanager
def offloading(head: nn.Module) -> Iterator[OffloadActivations]:
    """Offload what is saved in a forward pass, except by the head (NoOpManager).

    Args:
        head: the module that makes logits.
    """
    hooks = OffloadActivations()
    stays = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    handles = [
        head.register_forward_pre_hook(lambda *_: stays.__enter__()),
        head.register_forward_hook(lambda *_: stays.__exit__(), always_call=True),
    ]
    try:
        with hooks:
            yield hooks
    finally:
        for handle in handles:
            handle.remove()
