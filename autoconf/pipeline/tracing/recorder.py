"""Record every storage that a program on tensors creates, resizes and releases, and the part of the model that does it.

The log has two views: ``ledger`` takes from it how long each storage lives, ``validation.rank_trace`` how many bytes
are alive at each moment.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

SAMPLES = 2  # samples of a traced micro-batch; with a single one some copies would not be needed


class TraceError(RuntimeError):
    """The traced program breaks an assumption of the extrapolation."""


class Part(NamedTuple):
    """A part of a micro-batch: the segment of the model that runs, and whether it runs backward.

    Segments are ``embedding``, ``layer``, ``head`` and ``tail`` (after the backward pass of the first layer).
    """

    segment: str
    layer: int = -1
    backward: bool = False
    late: bool = False  # after the layer's first adapter started its backward pass


EMBEDDING, HEAD, LOSS, TAIL = Part("embedding"), Part("head"), Part("head", backward=True), Part("tail", backward=True)


class SizeChange(NamedTuple):
    """A storage that was created, grew, shrank or was released."""

    storage: int  # number of the storage, in the order of first appearance
    part: Part
    op: str
    nbytes: int  # bytes added; negative if a storage shrank or was released
    itemsize: int  # bytes of an element of the tensor
    live: int  # bytes of all storages after the change


class Recorder(TorchDispatchMode):
    """Log the changes of all storages that ops create or resize, from creation to release.

    Args:
        tokens: tokens of a sample. A tensor with two dimensions of this size raises ``TraceError``, because its bytes
            would not be affine in the tokens. -1 disables the check.
    """

    def __init__(self, tokens: int = -1) -> None:
        super().__init__()
        self.tokens = tokens
        self.part = EMBEDDING
        self.changes: list[SizeChange] = []
        self.live = 0
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._sizes: list[int] = []
        self._host: set[int] = set()  # storages in the host's memory, which count nothing

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf, str(func))
        return out

    def see(self, tensor: torch.Tensor, op: str = "resident") -> None:
        """Log the storage of a tensor, if it is new.

        Args:
            tensor: the tensor; for a distributed tensor, its local part is logged.
            op: the op that created it.

        Raises:
            TraceError: two of its dimensions are the tokens.
        """
        tensor = getattr(tensor, "_local_tensor", tensor)
        storage = tensor.untyped_storage()
        if storage in self._numbers:
            return
        if sum(size == self.tokens for size in tensor.shape) > 1:
            raise TraceError(f"{op} creates a tensor of tokens x tokens: {tuple(tensor.shape)}")
        number = len(self._sizes)
        self._numbers[storage] = number
        self._sizes.append(0)
        self._resize(number, storage.nbytes(), op, tensor.itemsize)
        weakref.finalize(storage, self._resize, number, 0, "release")

    def number(self, tensor: torch.Tensor) -> int:
        """The number of the storage of a tensor that has been logged."""
        return self._numbers[tensor.untyped_storage()]

    def is_in_host_memory(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was taken as one in the host's memory."""
        return self._numbers.get(getattr(tensor, "_local_tensor", tensor).untyped_storage(), -1) in self._host

    def _resize(self, number: int, nbytes: int, op: str, itemsize: int = 1) -> None:
        grown = nbytes - self._sizes[number]
        if grown:
            self._sizes[number] = nbytes
            self.live += grown
            self.changes.append(SizeChange(number, self.part, op, grown, itemsize, self.live))

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """Follow storages whose size changes in place, such as those of gathered parameters under FSDP."""
        resize = torch.UntypedStorage.resize_

        def followed(storage: Any, nbytes: int) -> Any:
            result = resize(storage, nbytes)
            if storage in self._numbers:
                self._resize(self._numbers[storage], nbytes, "resize_")
            return result

        with mock.patch.object(torch.UntypedStorage, "resize_", followed):
            yield


@contextmanager
def parts(layers: nn.ModuleList, recorder: Recorder) -> Iterator[None]:
    """Set the running part of a model in a recorder: forward, recomputed or backward.

    The caller must set ``recorder.part`` to ``EMBEDDING`` at the start of a micro-batch.

    Args:
        layers: the model's decoder layers.
        recorder: the recorder to update.
    """
    handles = _Hooks(recorder).register(layers)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hooks:
    """Hooks that modules and tensors call when a part of the model begins."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.adapted: set[int] = set()  # layers whose first adapter has run forward but not yet backward

    def register(self, layers: nn.ModuleList) -> list[Any]:
        handles = []
        for index, layer in enumerate(layers):
            # A checkpoint may recompute a layer's forward instead of its __call__, so the hooks are on the submodules.
            handles += [m.register_forward_pre_hook(partial(self._layer_runs, index)) for m in layer.modules()]
            handles.append(layer.register_forward_hook(partial(self._layer_ran, index)))
            adapters = [m for name, m in layer.named_modules() if name.endswith("lora_A.default")]
            handles += [m.register_forward_hook(partial(self._adapter_ran, index)) for m in adapters]
        handles.append(layers[-1].register_forward_hook(self._last_layer_ran))
        handles.append(layers[0].register_forward_pre_hook(self._first_layer_runs))
        return handles

    def _switch(self, part: Part, *_: Any) -> None:
        self.recorder.part = part

    def _layer_runs(self, layer: int, *_: Any) -> None:
        part = self.recorder.part
        if part.layer != layer or not part.backward:
            self._switch(Part("layer", layer, part.backward))

    def _layer_ran(self, layer: int, _: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(partial(self._switch, Part("layer", layer, True)))

    def _adapter_ran(self, layer: int, _: nn.Module, args: Any, output: torch.Tensor) -> None:
        if not self.recorder.part.late and layer not in self.adapted and output.requires_grad:
            self.adapted.add(layer)
            output.register_hook(partial(self._switch, Part("layer", layer, True, True)))

    def _last_layer_ran(self, *_: Any) -> None:
        self.adapted.clear()  # checkpoints call adapters again
        if not self.recorder.part.backward:
            self._switch(HEAD)

    def _first_layer_runs(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].requires_grad and not self.recorder.part.backward:
            args[0].register_hook(partial(self._switch, TAIL))
