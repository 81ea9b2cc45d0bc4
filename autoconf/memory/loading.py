"""Memory of each GPU while a job is loaded, in closed form.

A GPU can hold more before the first step than in any step: all weights before FSDP shards them, a unit in addition to
its flat copy, a bfloat16 copy of a weight that is quantized. The moments below were read in the libraries' code, and
are tested against its allocations, which ``autoconf.pipeline.replay.loading`` records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Loading
from autoconf.memory.sharding import Strategy
from autoconf.memory.units import Floats, Integers

LOADING = "loading"  # the moment of a recorded program before its first step

# torch/nn/parallel/distributed.py, broadcast_bucket_size.
_BROADCAST = 250 * 2**20
# bitsandbytes' defaults: elements per absmax, and absmax values per absmax of the second level. A quantization state
# also has tables of 16 and of 256 codes, and an offset, in float32.
_BLOCK, _NESTED_BLOCK, _CODES = 64, 256, 4 * (16 + 256 + 1)


class Parameter(NamedTuple):
    """A parameter of a model.

    Args:
        elements: number of elements.
        loaded: bytes of an element as loaded; of a 4-bit weight, of the copy from which it is quantized.
        trained: bytes of an element when training starts, for example 4 if accelerate makes it float32.
        packed: whether it is quantized to 4 bits.
        adapter: whether it belongs to an adapter.
        merged: whether the checkpoint has its experts one by one, and they are copied into it on the device.

    >>> Parameter(4096 * 4096, loaded=2, trained=2, packed=True).state
    267332.0
    """

    elements: int
    loaded: int
    trained: int
    packed: bool = False
    adapter: bool = False
    merged: bool = False

    @property
    def nbytes(self) -> float:
        """Bytes as loaded."""
        return self.elements * (0.5 if self.packed else self.loaded)

    @property
    def trained_bytes(self) -> float:
        return self.elements * (0.5 if self.packed else self.trained)

    @property
    def state(self) -> float:
        """Bytes of the quantization state, which FSDP does not shard."""
        blocks = self.elements / _BLOCK
        return blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + _CODES if self.packed else 0.0

    @property
    def copy(self) -> float:
        """Bytes beside it while it is loaded: what it is quantized from, with its absmax twice in float32, or merged.

        bitsandbytes/functional.py, quantize_4bit.
        """
        if self.packed:
            return self.elements * (self.loaded + 8 / _BLOCK)
        return self.nbytes if self.merged else 0.0


@dataclass(frozen=True)
class LoadedModel:
    """The parameters of a model, each once, in the order of ``named_parameters``.

    Args:
        before: before the decoder layers, such as embeddings.
        layers: of each decoder layer.
        after: after the decoder layers, such as the final norm and a head that is not tied.
        tied: those of ``before`` that the head has, too.
        buffers: bytes of buffers, such as the causal mask of some models; FSDP's root unit has them.
        checkpoint: indices of ``parameters()`` in the order of loading, adapters excluded.
        trainable_base: whether all parameters are trained, not only adapters.
    """

    before: tuple[Parameter, ...]
    layers: tuple[tuple[Parameter, ...], ...]
    after: tuple[Parameter, ...]
    tied: tuple[Parameter, ...] = ()
    buffers: int = 0
    checkpoint: tuple[int, ...] = ()
    trainable_base: bool = True

    def parameters(self) -> list[Parameter]:
        return [*self.before, *(parameter for layer in self.layers for parameter in layer), *self.after]

    def units(self) -> list[tuple[Parameter, ...]]:
        """Units of FSDP in the order in which they are sharded: each layer, then the root."""
        return [*self.layers, (*self.before, *self.after)]

    def trains(self, parameter: Parameter) -> bool:
        return self.trainable_base or parameter.adapter


class Held(NamedTuple):
    """Bytes of a GPU at a moment: on each GPU, and those that the GPUs divide."""

    whole: float
    sharded: float = 0.0


@dataclass(frozen=True)
class LoadingMemory:
    """Moments of loading, one of which is the peak for each number of GPUs."""

    moments: tuple[Held, ...]

    def peak_bytes(self, gpus: Integers) -> Floats:
        """The peak of each GPU in bytes.

        Args:
            gpus: numbers of GPUs, >= 1; shape (...).
        """
        return np.asarray(self._held(gpus).max(axis=-1))

    def _held(self, gpus: Integers) -> Floats:
        whole, sharded = np.array(self.moments, float).T
        return np.asarray(whole + sharded / np.asarray(gpus)[..., None])


def loading_memory(
    model: LoadedModel, strategy: Strategy, loading: Loading = "cpu", *, shard_adapters: bool = True
) -> LoadingMemory:
    """Memory of each GPU while a model is loaded, prepared and sharded.

    Args:
        model: its parameters.
        strategy: data parallelism over several GPUs.
        loading: how the weights come to the GPU; a model with 4-bit weights is always loaded on it.
        shard_adapters: whether FSDP1 shards adapters.

    >>> layer = (Parameter(50_000_000, loaded=4, trained=4),)
    >>> model = LoadedModel(before=(Parameter(100_000_000, 4, 4),), layers=(layer,) * 30, after=())
    >>> gpus = np.array([1, 8])
    >>> [loading_memory(model, "fsdp1", way).peak_bytes(gpus).tolist() for way in ("cpu", "gpu")]
    [[7200000000.0, 1600000000.0], [7200000000.0, 6625000000.0]]
    """
    if any(parameter.packed for parameter in model.parameters()):
        loading = "gpu"
    found = _on_gpu(model, strategy) if loading == "gpu" else []
    if strategy in ("none", "ddp"):
        found += _replicated(model, strategy)
    elif strategy == "fsdp2" and loading == "rank0":
        found += _received(model)
    else:
        found += _sharded(model, strategy, loading, shard_adapters)
    return LoadingMemory(undominated(found))


def undominated(moments: Iterable[Held]) -> tuple[Held, ...]:
    """Drop moments at which a GPU holds no more than at another one."""
    kept: list[Held] = []
    for moment in sorted(set(moments), reverse=True):
        if not kept or moment.sharded > kept[-1].sharded:
            kept.append(moment)
    return tuple(kept)


def _loaded_bytes(parameter: Parameter) -> float:
    return parameter.nbytes


def _trained_bytes(parameter: Parameter) -> float:
    return parameter.trained_bytes


def _total(parameters: Iterable[Parameter]) -> float:
    return sum(p.trained_bytes + p.state for p in parameters)


# --- loading on the GPU -----------------------------------------------------------------------------------------------


def _on_gpu(model: LoadedModel, strategy: Strategy) -> list[Held]:
    """Weights one by one, each with a copy if it is made from one."""
    parameters = model.parameters()
    base = [parameters[index] for index in model.checkpoint] or [p for p in parameters if not p.adapter]
    held, moments = 0.0, []
    for parameter in base:
        held += parameter.nbytes + parameter.state
        moments.append(Held(held + parameter.copy))
    plain = [p for p in base if not p.packed]
    held += model.buffers
    if strategy == "fsdp2":
        return moments + _upcast(held, parameters)
    if strategy != "fsdp1" and any(p.trained > p.loaded for p in plain):
        moments += _prepared(model, plain, held)
    return moments


def _upcast(held: float, parameters: Iterable[Parameter]) -> list[Held]:
    """accelerate makes FSDP2's parameters float32 one by one; adapters are there by then."""
    moments = []
    held += sum(p.nbytes for p in parameters if p.adapter)
    for parameter in parameters:
        if parameter.trained > parameter.loaded:
            moments.append(Held(held + parameter.trained_bytes))
            held += parameter.trained_bytes - parameter.nbytes
    return moments


def _prepared(model: LoadedModel, plain: Sequence[Parameter], held: float) -> list[Held]:
    """PEFT makes all but 4-bit weights float32; TRL then casts embeddings and head back."""
    moments = []
    for parameter in plain:
        moments.append(Held(held + parameter.elements * 4))
        held += parameter.elements * 4 - parameter.nbytes
    adapters = sum(p.trained_bytes for p in model.parameters() if p.adapter)
    back = [p for p in plain if p.trained < 4]
    return [*moments, *(Held(held + adapters + p.trained_bytes) for p in back)]


# --- sharding ---------------------------------------------------------------------------------------------------------


def _replicated(model: LoadedModel, strategy: Strategy) -> list[Held]:
    total = _total(model.parameters()) + model.buffers
    if strategy == "none":
        return [Held(total)]
    gradients = sum(p.trained_bytes for p in model.parameters() if model.trains(p))
    # On several GPUs 4-bit weights are stored in the dtype of the others (bnb_4bit_quant_storage).
    tensors = [(p.loaded if p.packed else p.trained, p.trained_bytes) for p in model.parameters()]
    return [Held(total + gradients), *(Held(total + nbytes) for nbytes in broadcasts(tensors))]


def broadcasts(tensors: Iterable[tuple[int, float]]) -> list[float]:
    """Bytes of each two buffers of DDP's broadcast: torch/csrc/distributed/c10d/comm.cpp, broadcast_coalesced.

    A buffer ends with the tensor that makes it as large as its limit. A buffer with a single tensor is not copied.

    Args:
        tensors: bytes of an element, and of each tensor, in their order.

    >>> broadcasts([(2, 300 * 2**20), (2, 200 * 2**20), (4, 10.0), (2, 100 * 2**20), (2, 50.0), (2, 5.0)])
    [0.0, 314572800.0, 314572800.0, 55.0]
    """
    filled: list[tuple[int, float]] = []  # the first tensor of each buffer, and the bytes to copy
    filling: dict[int, tuple[int, int, float]] = {}  # by bytes of an element: the first tensor, their number and bytes
    for index, (width, nbytes) in enumerate(tensors):
        first, number, before = filling.get(width, (index, 0, 0.0))
        if before + nbytes < _BROADCAST:
            filling[width] = first, number + 1, before + nbytes
        else:
            filled.append((first, before + nbytes if number else 0.0))
            filling.pop(width, None)
    rest = [(first, nbytes if number > 1 else 0.0) for first, number, nbytes in filling.values()]
    return [one + other for (_, one), (_, other) in pairwise([(-1, 0.0), *sorted(filled + rest)])]


def _sharded(model: LoadedModel, strategy: Strategy, loading: Loading, shard_adapters: bool) -> list[Held]:
    """Unit by unit: FSDP1 has a flat copy of a unit in addition to it; what is not sharded yet waits on the GPU."""
    fsdp1, waits = strategy == "fsdp1", loading == "gpu"
    # accelerate upcasts parameters after FSDP1 has sharded them, but before FSDP2 does.
    size = _loaded_bytes if fsdp1 else _trained_bytes
    # peft/utils/other.py, fsdp_auto_wrap_policy: FSDP1 has a unit for each adapter, before that of its layer.
    adapters = [sum(size(p) for p in unit if fsdp1 and p.adapter) for unit in model.units()]
    units = [sum(size(p) for p in unit if not (fsdp1 and p.adapter)) for unit in model.units()]
    whole = sum(p.state for p in model.parameters())
    last = len(units) - 1
    shards, waiting, moments = 0.0, sum(units) + sum(adapters), []
    for index, unit in enumerate(units):
        held = whole + (model.buffers if waits or index == last else 0) + unit * (2 if fsdp1 else 1)
        waiting -= unit + (adapters[index] if shard_adapters else 0.0)
        if waits:
            held += waiting
        shards += unit + (adapters[index] if shard_adapters else 0.0)
        moments.append(Held(held, shards))
    if fsdp1:
        # accelerate makes float32 shards of those in bfloat16, which stay until the first forward pass.
        upcast = sum(p.trained_bytes for p in model.parameters() if p.trained > p.loaded)
        moments.append(Held(whole + model.buffers + (0.0 if shard_adapters else sum(adapters)), shards + upcast))
    return moments


def _received(model: LoadedModel) -> list[Held]:
    """accelerate's fsdp2_load_full_state_dict: the received parameter and the one before are whole."""
    sizes = [p.trained_bytes for p in (*model.parameters(), *model.tied)]
    shards, moments = 0.0, []
    for before, received in pairwise([0.0, *sizes]):
        moments.append(Held(before + received, shards))
        shards += received
        moments.append(Held(received, shards))
    return [*moments, Held(model.buffers, shards)]
