"""Trace the profile of a model: every combination of settings that changes its layers or its head, each once.

A setting affects memory in one of three ways: it changes the memory of the layers or of the head (both are traced
here), or it only scales bytes (``autoconf.memory.sharding``, ``autoconf.memory.optimizers``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import cast

import numpy as np
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from autoconf.jobs.stack import LoraTargets, Stack
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import IN_ORDER, UPCAST_NORMS, HeadWay, LayerWay, ModelProfile, Trainable, Units
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.tracing import scaling
from autoconf.pipeline.tracing.extrapolate import head_moments, layer_moments
from autoconf.pipeline.tracing.ledger import Storages, rank_for, trace
from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model, decoder_layers
from autoconf.pipeline.tracing.recorder import TraceError
from autoconf.pipeline.tracing.ways import ADAPTING, TARGETS, Method, all_ways, layer_ways

_COMPARED = 35  # one of so many ways is traced although it could be derived
_DROPOUT = 0.05  # any rate; a mask has a byte for each element
Ways = list[LayerWay | HeadWay]


def traced(
    architecture: Architecture,
    watched: Callable[[Ways], Iterable[LayerWay | HeadWay]] = iter,
    known: ModelProfile | None = None,
) -> ModelProfile:
    """Figures of a model for all ways; those that cannot be traced are there with the reason.

    Args:
        architecture: the model.
        watched: passes the ways on, one by one, and sees when each is done.
        known: a profile of the same model by the same tracer, which lacks ways.
    """
    found = ModelProfile(architecture.name)
    if known is not None:
        found = ModelProfile(
            architecture.name, "", {**known.layers}, {**known.heads}, {**known.units}, {**known.problems}
        )
    short = short_stack(architecture)
    rank = rank_for(architecture, short)
    layers = derived_layers if _derives(architecture, rank) else partial(traced_layers, rank=rank)
    for way in watched(found.missing(all_ways(architecture.kinds))):
        try:
            if isinstance(way, LayerWay):
                found.layers[way] = layers(architecture, way)
            else:
                moments = head_moments(trace(head_job(architecture, way), short, rank), short, rank)
                found.heads[way] = np.array(moments)
        except UNTRACEABLE as error:
            found.problems[way] = _sentence(error)
    methods: list[tuple[Method, LoraTargets]] = [("full", "default"), *itertools.product(ADAPTING, TARGETS)]
    for method, targets in found.missing(methods):
        try:
            found.units[method, targets] = units(architecture, method, targets)
            if _adapts_parameters(architecture, method, targets):
                # peft/tuners/lora/layer.py, ParamWrapper: parameters that FSDP1 shards are read outside of its forward.
                found.problems[method, targets, "fsdp1"] = "PEFT's adapters of experts do not run under FSDP1"
        except UNTRACEABLE as error:
            found.problems[method, targets] = _sentence(error)
    return found


def traced_layers(architecture: Architecture, way: LayerWay, rank: int) -> np.ndarray:
    """The moments of a model's layers in a way, traced."""
    if isinstance(way.lora_targets, str) and way.lora_targets.endswith(IN_ORDER):
        return _in_order(architecture, way, rank)
    short = short_stack(architecture)
    return np.array(layer_moments(trace(layer_job(architecture, way), short, rank), short, architecture.kinds))


def _in_order(architecture: Architecture, way: LayerWay, rank: int) -> np.ndarray:
    """The same if the first layers have no adapters: they, and the first layer with adapters, are kinds of their own.

    Raises:
        TraceError: these layers have a backward pass.
    """
    first, *_ = kinds = architecture.kinds
    adapted = next(index for index, kind in enumerate(kinds) if kind != first)
    places = ["before"] * adapted + ["first"] + ["after"] * (len(kinds) - adapted - 1)
    whole = [*zip(places, kinds, strict=True)]
    short = [whole[0], *dict.fromkeys(whole[1:-1]), whole[-1]]
    storages = trace(layer_job(architecture, way), [kind for _, kind in short], rank)
    if any(part.backward and part.layer == 0 for part in storages.parts):
        raise TraceError(f"{first} layers before the first adapter have a backward pass")
    return np.array(layer_moments(storages, *([" ".join(layer) for layer in of] for of in (short, whole))))


def derived_layers(architecture: Architecture, way: LayerWay) -> np.ndarray:
    """The same for an architecture that has ``scaling.sizes_of``, from the trace of its reference."""
    storages = scaling.scaled(_of_reference(scaling.reference(architecture).model_dump_json(), way), architecture)
    return np.array(layer_moments(storages, short_stack(architecture), architecture.kinds))


@lru_cache(maxsize=256)  # of one reference, which has 210 ways
def _of_reference(reference: str, way: LayerWay) -> Storages:
    architecture, rank = _reference(reference)
    return trace(layer_job(architecture, way), short_stack(architecture), rank)


@lru_cache(maxsize=1)
def _reference(content: str) -> tuple[Architecture, int]:
    architecture = Architecture.model_validate_json(content)
    return architecture, rank_for(architecture, short_stack(architecture))


def _derives(architecture: Architecture, rank: int) -> bool:
    """Whether the layers of a model are those of its reference at other sizes, which some ways show."""
    if scaling.sizes_of(architecture) is None:
        return False
    some = [*layer_ways()][::_COMPARED]
    return all(
        np.array_equal(derived_layers(architecture, way), traced_layers(architecture, way, rank)) for way in some
    )


# Exceptions of libraries and of our own checks for unsupported combinations. Some are side effects: transformers raises
# StopIteration with FlashAttention if parameters are float32 and a model has no linear layers (GPT-2).
UNTRACEABLE = (TraceError, ValueError, RuntimeError, AttributeError, LookupError, StopIteration, TypeError)


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].removesuffix(": ")


def short_stack(architecture: Architecture) -> tuple[str, ...]:
    """Kinds of a short stack: the model's first and last layer, and one of each kind between them.

    Attention comes first among these, because layers before the first one with adapters may save nothing for a backward
    pass, and attention has adapters for all targets.
    """
    first, *between, last = architecture.kinds
    return (first, *sorted(dict.fromkeys(between), key=lambda kind: kind != "attention"), last)


def layer_job(architecture: Architecture, way: LayerWay) -> TrainingSetup:
    """A job on one GPU whose layers run in a way: the inverse of ``autoconf.memory.ways.layer_way``."""
    quantized, targets = way.method == "qlora", way.lora_targets
    settings = {
        "torch_dtype": "bfloat16" if quantized else way.torch_dtype,
        "upcast_unquantized": "all" if quantized and way.torch_dtype == "float32" else "none",
        "mixed_precision": way.mixed_precision,
        "adapter_dtype": way.adapter_dtype,
        "lora_dropout": _DROPOUT if way.dropout else 0.0,
        "gradient_checkpointing": way.gradient_checkpointing,
        "lora_targets": targets.removesuffix(IN_ORDER) if isinstance(targets, str) else targets,
        "quantization": "nf4" if quantized else "none",
        "gradient_accumulation": False,
    }
    return TrainingSetup(architecture, cast(Method, way.method), Stack.model_validate(settings))


def head_job(architecture: Architecture, way: HeadWay) -> TrainingSetup:
    """A job on one GPU whose head and loss run in a way: the inverse of ``autoconf.memory.ways.head_way``."""
    settings = {"mixed_precision": way.mixed_precision, "loss": way.loss, "gradient_accumulation": False}
    if way.torch_dtype == UPCAST_NORMS:
        stack = Stack.model_validate({**settings, "quantization": "nf4", "upcast_unquantized": "norms"})
        return TrainingSetup(architecture, "qlora", stack)
    settings |= {"torch_dtype": way.torch_dtype, "adapter_dtype": way.torch_dtype}
    return TrainingSetup(architecture, "full" if way.trains else "lora", Stack.model_validate(settings))


def units(architecture: Architecture, method: Method, targets: LoraTargets) -> Trainable:
    """Numbers of parameters by FSDP unit, and the trainable parameters; adapters are per rank."""
    short = short_stack(architecture)
    stack = Stack(lora_targets=targets, lora_r=1, quantization="nf4" if method == "qlora" else "none")
    model = build_model(TrainingSetup(architecture, method, stack), short)
    layers = decoder_layers(model)
    times = {id(layer): 0 for layer in layers}
    by_kind = dict(zip(short, layers, strict=True))
    for kind in architecture.kinds:
        times[id(by_kind[kind])] += 1
    every = [_count(layer) for layer in by_kind.values()]
    all_layers = [
        sum(times[id(layer)] * count[i] for layer, count in zip(by_kind.values(), every, strict=True)) for i in range(3)
    ]
    whole, short_layers = _count(model), [sum(_count(layer)[i] for layer in layers) for i in range(3)]
    root = [whole[i] - short_layers[i] for i in range(3)]
    largest = max(every, key=lambda count: count[0] + count[1] + count[2] / 4)
    absmax = sum(times[id(layer)] * _absmax(layer) for layer in by_kind.values())
    buffers = _buffers(model) + sum((times[id(layer)] - 1) * _buffers(layer) for layer in layers)
    sizes = Units(
        frozen=root[0] + all_layers[0], trainable=root[1] + all_layers[1], quantized=root[2] + all_layers[2],
        layer_frozen=largest[0], layer_trainable=largest[1], layer_quantized=largest[2],
        root_frozen=root[0], root_trainable=root[1], absmax_bytes=absmax, buffer_bytes=buffers,
    )  # fmt: skip
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    in_layers = {p for layer in layers for p in layer.parameters()}
    shapes: dict[Shape, int] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in in_layers:
            shape = Shape(tuple(parameter.shape), 1, parameter in embeddings)
            shapes[shape] = shapes.get(shape, 0) + 1
    for layer in by_kind.values():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                shape = Shape(tuple(parameter.shape), 1)
                shapes[shape] = shapes.get(shape, 0) + times[id(layer)]
    return Trainable(sizes, tuple(shapes.items()))


def _adapts_parameters(architecture: Architecture, method: Method, targets: LoraTargets) -> bool:
    """Whether adapters are on parameters, such as experts stored as one tensor, and not only on linear layers."""
    stack = Stack(lora_targets=targets, quantization="nf4" if method == "qlora" else "none")
    model = build_model(TrainingSetup(architecture, method, stack), short_stack(architecture))
    return any(isinstance(module, ParamWrapper) for module in model.modules())


def _count(module: nn.Module) -> tuple[int, int, int]:
    """Frozen, trainable and quantized parameters."""
    frozen = trainable = quantized = 0
    for parameter in module.parameters():
        if isinstance(parameter, cuda_kernels.bitsandbytes.nn.Params4bit):
            quantized += 2 * parameter.numel() * parameter.itemsize
        elif parameter.requires_grad:
            trainable += parameter.numel()
        else:
            frozen += parameter.numel()
    return frozen, trainable, quantized


def _buffers(module: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in module.buffers())


def _absmax(module: nn.Module) -> int:
    quantized = [m for m in module.modules() if isinstance(m, cuda_kernels.Linear4bit)]
    return sum(cuda_kernels.absmax_bytes(m.shape) for m in quantized)
