"""Memory of a worker's host that a job takes: what its processes offload, and copies of weights while they are loaded.

The figures were read from the code of DeepSpeed 0.19.8 and PyTorch 2.13. Not counted are Python, CUDA and
the libraries (a few GiB for each process), workers that load data, and pages of a checkpoint that the kernel can drop:
safetensors of the right dtype are mapped, not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.offloaded import SavedInputs
from autoconf.memory.profile import Trainable
from autoconf.memory.sharding import Strategy, UnshardedJob
from autoconf.memory.zero_job import ZeroJob

# Bytes of a weight on the host while it is loaded, by its dtype: checkpoints are in bfloat16.
_CONVERTED = {"bfloat16": 0.0, "float16": 2.0, "float32": 4.0}


def pinned_bytes(nbytes: float) -> float:
    """Bytes of a page-locked block, whose size is a power of two.

    ATen/core/CachingHostAllocator.h, allocate. PyTorch keeps blocks that are released.

    >>> pinned_bytes(3 * 2**30) / 2**30
    4.0
    """
    return float(1 << (math.ceil(nbytes) - 1).bit_length()) if nbytes > 0 else 0.0


def _pinned(blocks: Iterable[float]) -> float:
    return sum(map(pinned_bytes, blocks))


@dataclass(frozen=True)
class HostMemory:
    """Memory of the host that the processes of a worker take.

    Attributes:
        job: the job on one GPU.
        strategy: how the GPUs share it.
        stack: the training stack.
        full: all parameters of the model, without adapters.
        trained: the trainable parameters.
        zero: the job under ZeRO, if that is the strategy.
        inputs: what checkpoints keep there.
    """

    job: UnshardedJob
    strategy: Strategy
    stack: Stack
    full: Trainable
    trained: Trainable
    zero: ZeroJob | None = None
    inputs: SavedInputs | None = None
    _known: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    def under(self, zero: ZeroJob) -> HostMemory:
        """The same job under ZeRO."""
        return replace(self, zero=zero, _known={})

    def worker_bytes(self, gpus: int, on_worker: int, tokens: float = 0.0) -> float:
        """Bytes of the processes of a job on one worker, of which there is one for each GPU.

        Args:
            gpus: number of GPUs of the job, >= 1.
            on_worker: number of GPUs of the worker, >= 1.
            tokens: tokens of a micro-batch on each GPU, >= 0.
        """
        if gpus not in self._known:
            self._known[gpus] = self._training(gpus)
        return max(self._loading(on_worker), on_worker * (self._known[gpus] + self._checkpoints(tokens)))

    def _checkpoints(self, tokens: float) -> float:
        """Inputs of layers, a page-locked block for each, and at most what the head keeps for the backward pass."""
        if self.inputs is None:
            return 0.0
        blocks = [self.inputs.per_token * tokens] * self.inputs.layers
        return _pinned([*blocks, self.inputs.beside * tokens])

    def _loading(self, processes: int) -> float:
        """Weights that processes convert while they load them.

        transformers/modeling_utils.py, _load_pretrained_model: a checkpoint is mapped, and a weight in another dtype is
        a copy on the host. Under ZeRO-3 only the first process reads it, and 4-bit weights are made on the GPU.
        """
        if self.stack.quantization != "none" or self.strategy == "zero3":
            return 0.0
        if self.strategy in ("fsdp1", "fsdp2"):
            processes = {"cpu": processes, "gpu": 0, "rank0": 1}[self.stack.loading]
        return processes * _CONVERTED[self.stack.torch_dtype] * self.full.units.trainable

    def _training(self, gpus: int) -> float:
        if self.job.offload == "none":
            return 0.0
        if self.zero is None:
            return self._fsdp(gpus)
        if self.strategy in ("zero1", "zero2"):
            return _optimizer(self.zero, self._adam, gpus)
        optimizer = _optimizer3(self.zero, self._adam, gpus) if self.job.offloads else 0.0
        return optimizer + (0.0 if self.job.weights_on_gpu else _parameters3(self.zero, gpus))

    @property
    def _adam(self) -> int:
        """Bytes of float32 states for each trained parameter of the optimizer that DeepSpeed has for the host."""
        # accelerate/utils/deepspeed.py, map_pytorch_optim_to_deepspeed: its Adam, but for Lion with 32 bits.
        return 4 if self.stack.optim in ("lion_32bit", "paged_lion_32bit") else 8

    def _fsdp(self, gpus: int) -> float:
        """Page-locked shards as stored, and their gradients; states are not page-locked."""
        whole = self._units(gpus) if self.strategy == "fsdp1" else self._parameters(gpus)
        largest = max(shape.elements for shape, _ in self.trained.shapes) * (self.job.rank or 1)
        # torch/optim/adamw.py, _single_tensor_adamw: two copies, if it is neither fused nor another optimizer.
        step = 2 * largest * self.job.bytes_per_parameter.trainable if self.stack.optim == "adamw_torch" else 0
        return whole + (self.job.optimizer.states + step) / gpus

    def _units(self, gpus: int) -> float:
        """FSDP1: _flat_param.py, init_flat_param_attributes: a block for a unit, and one for its gradients.

        A frozen unit has both, too. Adapters are units of their own; if the largest layer has none, as in hybrids whose
        attention alone has adapters, each layer is given the mean.
        """
        per, units, rank = self.job.bytes_per_parameter, self.job.units, self.job.rank or 1
        counted = units if units.layer_trainable else self.full.units
        layers = round((counted.trainable - counted.root_trainable) / counted.layer_trainable)
        of_each = units.layer_trainable or (units.trainable - units.root_trainable) / layers
        frozen = [
            units.root_frozen * per.frozen,
            units.layer_frozen * per.frozen + units.layer_quantized * self.job.per_quantized,
        ]
        trained = [float(count * rank * per.trainable) for count in (units.root_trainable, of_each)]
        root, layer = trained if self.job.rank is None else frozen
        of_root, of_layer = (0.0, 0.0) if self.job.rank is None else trained
        blocks = [root, of_root, *[layer, of_layer] * layers]
        return 2 * _pinned(block / gpus for block in blocks)

    def _parameters(self, gpus: int) -> float:
        """FSDP2: _fsdp_param.py, _init_sharded_param: a block for each parameter.

        _fsdp_collectives.py, foreach_reduce: one for its gradient if it is trained.
        """
        per, rank = self.job.bytes_per_parameter, self.job.rank
        layers = round((self.full.units.trainable - self.full.units.root_trainable) / self.full.units.layer_trainable)
        trained = sum(
            count * pinned_bytes(shape.elements * (rank or 1) * per.trainable / gpus)
            for shape, count in self.trained.shapes
        )
        if rank is None:
            return 2 * trained
        packed = layers if self.job.units.quantized else math.inf  # matrices of all layers have 4 bits
        frozen = 0.0
        for shape, count in self.full.shapes:
            width = self.job.per_quantized if count >= packed and len(shape.dimensions) > 1 else per.frozen
            frozen += count * pinned_bytes(shape.elements * width / gpus)
        return 2 * trained + frozen


def _optimizer(zero: ZeroJob, states: int, gpus: int) -> float:
    """stage_1_and_2.py: of each flat parameter, a partition in float32, its gradient, and a copy to move to the GPU.

    Each is page-locked; states are not. Under accumulation there are also whole gradients of the parameters that the
    partition touches (async_accumulate_grad_in_cpu_via_gpu), and there is a buffer for the largest one.
    """
    partitions = [math.ceil(size / gpus) for size in zero.flat_sizes]
    blocks = [nbytes * size for size in partitions for nbytes in (4, 4, zero.itemsize)]
    blocks.append(zero.itemsize * max(zero.trainable.flat()))
    accumulated = _of_partition(zero, gpus) if zero.job.accumulating else 0.0
    return _pinned(blocks) + accumulated + states * sum(partitions)


def _of_partition(zero: ZeroJob, gpus: int) -> float:
    """Page-locked bytes of whole gradients of the parameters of one partition, of the one that has most."""
    sizes = np.array(zero.trainable.flat(), float)
    ends = np.cumsum(sizes)
    partition = math.ceil(ends[-1] / gpus)
    first, last = (ends - sizes) // partition, (ends - 1) // partition
    bytes_ = np.array([pinned_bytes(zero.itemsize * size) for size in sizes])
    owned = [bytes_[(first <= rank) & (last >= rank)].sum() for rank in range(gpus)]
    return float(max(owned))


def _optimizer3(zero: ZeroJob, states: int, gpus: int) -> float:
    """stage3.py: float32 parameters and states, page-locked float32 gradients by sub-group, and those of the model.

    initialize_optimizer_states; _create_fp32_partitions; grad_partitions_flat_buffer.
    """
    partitions = [size / gpus for size in zero.flat_sizes]
    limit = zero.buckets.sub_group_size
    groups = [part for size in partitions for part in (*[limit] * int(size // limit), size % limit)]
    flat = [zero.itemsize * sum(partitions)]
    return (4 + states) * sum(partitions) + _pinned([*(4 * size for size in groups), *flat])


def _parameters3(zero: ZeroJob, gpus: int) -> float:
    """partition_parameters.py, _partition_param: a page-locked block for each parameter that is not persistent.

    stage3.py, _create_param_groups_fp16_flat_cpu_memory: those of trained parameters then move to one block for each
    group of the optimizer; PyTorch keeps the released ones.
    """
    unit, limit = zero.job.bytes_per_parameter.frozen_computing, zero.buckets.stage3_param_persistence_threshold
    blocks = [unit * math.ceil(size / gpus) for size in zero.calls.sizes() if size > limit]
    return _pinned([*blocks, *(unit * size / gpus for size in zero.flat_sizes)])
