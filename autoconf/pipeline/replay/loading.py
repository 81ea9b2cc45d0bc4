"""Record what a GPU holds while a job is loaded: its weights, quantized or upcast, its adapters, and its shards.

The libraries' own code runs on fake tensors where it can: FSDP1's and FSDP2's sharding, accelerate's distribution of
the first process' weights, bitsandbytes' quantization, and the broadcast of torch.distributed. What moves a tensor from
the CPU's memory to the GPU is replaced by a copy, because the GPU of fake tensors is the CPU. The rest follows from the
functions that comments name, in transformers 5.23, PEFT 0.21 and accelerate 1.15.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bitsandbytes
import torch
import transformers
from accelerate.utils import fsdp_utils
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel

from autoconf.jobs.stack import Loading
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.replay import ddp
from autoconf.pipeline.replay.experts import ExpertMerger
from autoconf.pipeline.replay.program_recorder import ProgramRecorder
from autoconf.pipeline.tracing.model_setup import DTYPES, Rank, TrainingSetup, materialize

_Named = tuple[str, torch.Tensor]


def loading_of(job: TrainingSetup, wanted: Loading = "cpu") -> Loading:
    """How a job is loaded, if its stack leaves a choice.

    transformers/quantizers/quantizer_bnb_4bit.py, update_device_map: a model that is quantized to 4 bits is loaded on
    each process' GPU, whatever FSDP does later. Without shards no process has less than all weights.

    Args:
        job: the training setup.
        wanted: the way for models that are not quantized.
    """
    if job.method == "qlora":
        return "gpu"
    return wanted if job.shards or wanted == "gpu" else "cpu"


def loader(recorder: ProgramRecorder, wanted: Loading) -> Callable[[TrainingSetup, nn.Module, DeviceMesh | None], Rank]:
    """Return the ``load`` of ``first_rank`` that records into a recorder."""

    def load(job: TrainingSetup, model: nn.Module, mesh: DeviceMesh | None) -> Rank:
        way = loading_of(job, wanted)
        if way == "rank0" and job.stack.sharding == "fsdp2":
            return _distributed(recorder, job, model, mesh)
        upcasts_first = job.upcasts and job.stack.sharding == "fsdp2"
        materialize(model)
        if upcasts_first and way != "gpu":
            _upcast(_trainable(model))
        for tensor in (*model.parameters(), *model.buffers()):
            recorder.in_host_memory(tensor)
        with recorder, recorder.resizes(), _moves(recorder):
            if way == "gpu":
                _load_on_gpu(recorder, job, model)
            elif not job.shards:
                _move(recorder, "moved to the GPU", _in_order_of_module_to(model))
            if upcasts_first and way == "gpu":
                with recorder.inside("upcast by accelerate"):
                    _upcast(_trainable(model))
            with recorder.inside("wrapped"):
                # transformers/training_args.py: sync_module_states is the Trainer's default for FSDP1.
                rank = Rank(job, model, mesh, upcast=False, sync_module_states=True)
                if job.upcasts and job.stack.sharding == "fsdp1":
                    _upcast_flat(rank.model)
            _move(recorder, "moved to the GPU", ((str(n), t) for n, t in enumerate(rank.resident())))
            if job.gpus > 1 and not job.shards:
                with recorder.inside("DDP"):
                    rank.buckets = ddp.wrapped(rank)
        return rank

    return load


# --- moves ------------------------------------------------------------------------------------------------------------


def _move(recorder: ProgramRecorder, part: str, tensors: Iterable[_Named]) -> None:
    """Copy tensors that are in the CPU's memory to the GPU, one by one."""
    with recorder.inside(part), torch.no_grad():
        for name, tensor in tensors:
            if recorder.is_in_host_memory(tensor):
                recorder.name_module(name)
                tensor.data = _copied(tensor)


def _copied(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return tensor.detach().to(dtype=dtype or tensor.dtype, copy=True)


def _in_order_of_module_to(model: nn.Module) -> Iterator[_Named]:
    """Yield tensors as Trainer._move_model_to_device moves them.

    torch/nn/modules/module.py, Module._apply: children first, then a module's own.
    """
    for name, module in _post_order("", model):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            yield name, tensor


def _post_order(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        yield from _post_order(f"{name}.{child_name}" if name else child_name, child)
    yield name, module


@contextmanager
def _moves(recorder: ProgramRecorder) -> Iterator[None]:
    """Let FSDP move a unit's parameters to the GPU as it does before it shards them.

    torch/distributed/fsdp/_init_utils.py, _move_module_to_device, and _fully_shard/_fsdp_init.py,
    _get_modules_and_states.
    """

    def move(parameters: list[nn.Parameter], buffers: list[torch.Tensor], _: Any) -> None:
        with torch.no_grad():
            for tensor in (*parameters, *buffers):
                if recorder.is_in_host_memory(tensor):
                    tensor.data = _copied(tensor)

    patched = {
        "torch.distributed.fsdp._init_utils._move_states_to_device": move,
        "torch.distributed.fsdp._fully_shard._fsdp_init._move_states_to_device": move,
        # What is broadcast must not be on the CPU, which here is the GPU.
        "torch.distributed.fsdp._init_utils._check_module_states_for_sync_module_states": lambda _: None,
    }
    with ExitStack() as patches:
        for name, function in patched.items():
            patches.enter_context(mock.patch(name, function))
        yield


# --- accelerate -------------------------------------------------------------------------------------------------------


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _upcast(parameters: Iterable[nn.Parameter]) -> None:
    # accelerate/utils/fsdp_utils.py, fsdp2_prepare_model: before the model is sharded.
    for parameter in parameters:
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.to(torch.float32)


def _upcast_flat(model: nn.Module) -> None:
    # accelerate/accelerator.py, prepare_model: after all of the model is sharded.
    for unit in FullyShardedDataParallel.fsdp_modules(model):
        handle: Any = unit._handle
        if handle is not None and handle.flat_param.requires_grad and handle.flat_param.dtype != torch.float32:
            handle.flat_param.data = handle.flat_param.data.to(torch.float32)
            handle._orig_param_dtype = torch.float32


def _distributed(recorder: ProgramRecorder, job: TrainingSetup, model: Any, mesh: DeviceMesh | None) -> Rank:
    """Shard a model without weights, then receive each parameter from the first process, and keep a piece of it.

    accelerate/utils/fsdp_utils.py, fsdp2_prepare_model with cpu_ram_efficient_loading. A process that receives holds
    two whole parameters for a moment, the first one only one.
    """
    with unset_fake_temporarily():
        rank = Rank(job, model, mesh)
        model.tie_weights()
    buffers = {name: torch.empty_like(buffer, device="cpu") for name, buffer in model.named_buffers()}
    for buffer in buffers.values():
        recorder.in_host_memory(buffer)
    receiver: Any = SimpleNamespace(is_main_process=False)
    with recorder, recorder.inside("distributed"):
        fsdp_utils.fsdp2_load_full_state_dict(receiver, model, {})
        for name, buffer in buffers.items():
            parent, _, own = name.rpartition(".")
            model.get_submodule(parent).register_buffer(own, _copied(buffer), persistent=False)
        model.tie_weights()
    return rank


# --- from_pretrained on a GPU -----------------------------------------------------------------------------------------


def _load_on_gpu(recorder: ProgramRecorder, job: TrainingSetup, model: nn.Module) -> None:
    """Load weights as ``from_pretrained`` does with a ``device_map``, then prepare the model and add adapters."""
    dtype = DTYPES[job.stack.torch_dtype]
    adapters = [(name, p) for name, p in model.named_parameters() if ".lora_" in name]
    ids = {id(parameter) for _, parameter in adapters}
    weights = sorted(((n, p) for n, p in model.named_parameters() if id(p) not in ids), key=checkpoint_key)
    packed = {id(m.weight): m for m in model.modules() if isinstance(m, cuda_kernels.Linear4bit)}
    experts = ExpertMerger(model)
    dtypes = {id(p): p.dtype for _, p in weights}
    with torch.no_grad():
        with recorder.inside("from_pretrained"):
            _warm_up(recorder, [packed[id(p)].shape if id(p) in packed else p for _, p in weights], dtype)
            for name, parameter in weights:
                recorder.name_module(name.rpartition(".")[0])
                if id(parameter) in packed:
                    _quantize(packed[id(parameter)], dtype)
                elif experts.merges(name):
                    parameter.data = experts.merged(name, parameter.shape, parameter.dtype)
                else:
                    parameter.data = _copied(parameter, dtype if job.prepares else None)
        _move(recorder, "from_pretrained", model.named_buffers())
        plain: list[_Named] = [(name, parameter) for name, parameter in weights if id(parameter) not in packed]
        if job.prepares:
            with recorder.inside("upcast by PEFT"):
                _cast(recorder, plain, {id(p): torch.float32 for _, p in plain})
                # peft/utils/other.py, prepare_model_for_kbit_training
                recorder.empty_cache()
        _move(recorder, "adapters", adapters)
        with recorder.inside("cast by TRL"):
            _cast(recorder, plain, dtypes)


def _cast(recorder: ProgramRecorder, parameters: list[_Named], dtypes: dict[int, torch.dtype]) -> None:
    for name, parameter in parameters:
        if parameter.dtype != dtypes[id(parameter)]:
            recorder.name_module(name.rpartition(".")[0])
            parameter.data = parameter.data.to(dtypes[id(parameter)])


def _quantize(layer: cuda_kernels.Linear4bit, dtype: torch.dtype) -> None:
    """Quantize a weight on the GPU: transformers/integrations/bitsandbytes.py, Bnb4bitQuantize."""
    whole = torch.empty(layer.shape, dtype=dtype)
    if not hasattr(torch.ops.bitsandbytes, "quantize_4bit"):  # releases before 0.46 do not run on fake tensors
        layer.weight.data = torch.empty_like(layer.weight)
        layer.allocate_absmax()
        return
    with unset_fake_temporarily():  # the table is computed from values
        table = bitsandbytes.functional.create_dynamic_map()
    with mock.patch.dict(bitsandbytes.functional.name2qmap, dynamic=table):
        packed, state = bitsandbytes.functional.quantize_4bit(
            whole, compress_statistics=True, quant_type="nf4", quant_storage=layer.weight.dtype
        )
    layer.weight.data = packed
    layer.absmax = [state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset]


def _warm_up(recorder: ProgramRecorder, weights: Iterable[torch.Tensor | tuple[int, int]], dtype: torch.dtype) -> None:
    """Allocate the bytes of all weights in one block, and free it.

    transformers/modeling_utils.py, caching_allocator_warmup, since release 4.50: half a byte for each 4-bit weight. It
    leaves 1.2 GiB of a GPU free, which matters only if the weights need nearly all of it.
    """
    if not hasattr(transformers.modeling_utils, "caching_allocator_warmup"):
        return
    nbytes = sum(
        weight[0] * weight[1] / 2 if isinstance(weight, tuple) else weight.numel() * dtype.itemsize
        for weight in weights
    )
    recorder.allocate_for_a_moment(int(nbytes // 2) * 2, "caching_allocator_warmup")


def checkpoint_key(named: _Named) -> list[tuple[int, int, str]]:
    """A weight's place in the order of loading, by its name in the checkpoint.

    transformers/core_model_loading.py, dot_natural_key.
    """
    name = re.sub(r"^base_model\.model\.|base_layer\.", "", named[0])
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
