"""Memory of each GPU while a job is loaded, in closed form.

A GPU can hold more before the first step than in any step: all weights before FSDP shards them, a unit in addition to
its flat copy, a bfloat16 copy of a weight that is quantized. The moments below were read in the libraries' code, and
are tested against its allocations, which ``autoconf.pipeline.replay.loading`` records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from autoconf.memory.sharding import Strategy
from autoconf.memory.units import Floats, Integers

# cpu: each process loads the weights into the CPU's memory, from where they are moved to the GPU, under FSDP unit by
# unit. gpu: each process loads all weights on its GPU. rank0: only the first process loads weights, and the others
# receive them; accelerate's cpu_ram_efficient_loading.
Loading = Literal["cpu", "gpu", "rank0"]
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

    >>> Parameter(4096 * 4096, loaded=2, trained=2, packed=True).state
    267332.0
    """

    elements: int
    loaded: int
    trained: int
    packed: bool = False
    adapter: bool = False

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
        return blocks + 4 * np.ceil(blocks / _NESTED_BLOCK) + _CODES if self.packed else 0.0


@dataclass(frozen=True)
class LoadedModel:
    """The parameters of a model, each once, in the order of ``named_parameters``.

    Args:
        before: before the decoder layers, such as embeddings.
        layers: of each decoder layer.
        after: after the decoder layers, such as the final norm and a head that is not tied.
        tied: those of ``before`` that the head has, too.
        checkpoint: indices of ``parameters()`` in the order of loading, adapters excluded.
        trainable_base: whether all parameters are trained, not only adapters.
    """

    before: tuple[Parameter, ...]
    layers: tuple[tuple[Parameter, ...], ...]
    after: tuple[Parameter, ...]
    tied: tuple[Parameter, ...] = ()
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
        """The peak of each GPU in bytes, without buffers.

        Args:
            gpus: numbers of GPUs, >= 1; shape (...).
        """
        whole, sharded = np.array(self.moments, float).T
        peaks: Floats = np.max(whole + sharded / np.asarray(gpus)[..., None], axis=-1)
        return peaks


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
    [[7200000000.0, 1600000000.0], [6800000000.0, 6625000000.0]]
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
    return LoadingMemory(_undominated(found))


def _undominated(moments: Iterable[Held]) -> tuple[Held, ...]:
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
    """Weights one by one; a 4-bit one from a copy, with its absmax twice in float32: bitsandbytes, quantize_4bit."""
    parameters = model.parameters()
    base = [parameters[index] for index in model.checkpoint] or [p for p in parameters if not p.adapter]
    held, moments = 0.0, []
    for parameter in base:
        held += parameter.nbytes + parameter.state
        copy = parameter.elements * (parameter.loaded + 8 / _BLOCK) if parameter.packed else 0.0
        moments.append(Held(held + copy))
    plain = [p for p in base if not p.packed]
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
    total = _total(model.parameters())
    if strategy == "none":
        return [Held(total)]
    gradients = sum(p.trained_bytes for p in model.parameters() if model.trains(p))
    return [Held(total + gradients), *(Held(total + nbytes) for nbytes in _broadcasts(model))]


def _broadcasts(model: LoadedModel) -> list[float]:
    """Bytes of two buffers of DDP's broadcast: torch/csrc/distributed/c10d/comm.cpp, broadcast_coalesced.

    A buffer ends with the tensor that makes it as large as its limit. One with a single tensor is no copy.
    """
    finished: list[tuple[int, float]] = []
    filling: dict[float, list[float]] = {}  # bytes of each tensor, by bytes of an element
    for parameter in model.parameters():
        width = parameter.trained_bytes / parameter.elements
        bucket = filling.setdefault(width, [])
        bucket.append(parameter.trained_bytes)
        if sum(bucket) >= _BROADCAST:
            finished.append((len(bucket), sum(filling.pop(width))))
    finished += [(len(bucket), sum(bucket)) for bucket in filling.values()]
    copies = [0.0, *(nbytes if tensors > 1 else 0.0 for tensors, nbytes in finished)]
    return [one + other for one, other in pairwise(copies)]


def _sharded(model: LoadedModel, strategy: Strategy, loading: Loading, shard_adapters: bool) -> list[Held]:
    """Unit by unit: FSDP1 has a flat copy of a unit in addition to it, FSDP2 only its shards."""
    fsdp1 = strategy == "fsdp1"
    # accelerate upcasts parameters after FSDP1 has sharded them, but before FSDP2 does.
    size = _loaded_bytes if fsdp1 else _trained_bytes
    whole_adapters = fsdp1 and not shard_adapters
    state = sum(p.state for p in model.parameters())
    units = [[p for p in unit if not (fsdp1 and p.adapter)] for unit in model.units()]
    apart = [sum(size(p) for p in unit if fsdp1 and p.adapter) for unit in model.units()]
    sizes = [sum(map(size, unit)) for unit in units]
    left = sum(sizes) + sum(apart) if loading == "gpu" else 0.0
    shards, moments = 0.0, []
    for unit, adapters in zip(sizes, apart, strict=True):
        if not whole_adapters:
            shards += adapters
            left -= adapters if loading == "gpu" else 0.0
        shards += unit
        moments.append(Held(state + (left or unit) + (unit if fsdp1 else 0.0), shards))
        left -= unit if loading == "gpu" else 0.0
    return [*moments, *_after_fsdp1(model, state, shards, sum(apart) if whole_adapters else 0.0)] if fsdp1 else moments


def _after_fsdp1(model: LoadedModel, state: float, shards: float, whole_adapters: float) -> list[Held]:
    """accelerate makes float32 shards of those in bfloat16, which stay until the first forward pass."""
    upcast = sum(p.trained_bytes for p in model.parameters() if p.trained > p.loaded and model.trains(p))
    return [Held(state + whole_adapters, shards + upcast)]


def _received(model: LoadedModel) -> list[Held]:
    """accelerate's fsdp2_load_full_state_dict: the received parameter and the one before are whole."""
    sizes = [p.trained_bytes for p in (*model.parameters(), *model.tied)]
    shards, moments = 0.0, []
    for before, received in pairwise([0.0, *sizes]):
        moments.append(Held(before + received, shards))
        shards += received
        moments.append(Held(received, shards))
    return moments
