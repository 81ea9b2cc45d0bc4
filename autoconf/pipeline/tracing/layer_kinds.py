"""Check that decoder layers of one kind are the same, and that no layer is of an unknown kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from autoconf.errors import BadInput
from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing.ledger import LOSS, Part, Storages, rank_for, trace
from autoconf.pipeline.tracing.model_setup import ATTENTION, TrainingSetup, build_model, decoder_layers

# Attributes by which modules distinguish attention to all tokens from attention to a window. Some do more with them,
# such as rotating in one of the two only, which a trace shows.
_WINDOW = ("sliding_window", "is_sliding", "attention_type", "layer_type", "is_local_attention", "local_window_size")
_Traits = dict[tuple[str, str], Any]  # a module's path and attribute -> its value


def check_kinds(architecture: Architecture, published: dict[str, Any]) -> None:
    """Check that the layers of each kind of an architecture are the same.

    Args:
        architecture: architecture of the model.
        published: its config, unchanged.

    Raises:
        BadInput: two layers of one kind differ; the message names them and the difference.
    """
    as_published = architecture.model_copy(
        update={"config": {**architecture.config, **{k: v for k, v in published.items() if k == "layer_types"}}}
    )
    layers = _all_traits([*decoder_layers(build_model(TrainingSetup(as_published, "full", Stack())))])
    windows: dict[
        str, dict[str, int]
    ] = {}  # for each kind: how its layers define what they attend to, and the first such layer
    for index, (kind, traits) in enumerate(zip(architecture.kinds, layers, strict=True)):
        window = str({trait: value for trait, value in traits.items() if trait[1] in _WINDOW})
        first = next(iter(windows.setdefault(kind, {window: index}).values()))
        windows[kind].setdefault(window, index)
        for trait in sorted({**layers[first], **traits}, key=lambda trait: (trait[1] != "class", trait)):
            one, other = (of.get(trait, "absent") for of in (layers[first], traits))
            if one != other and trait[1] not in _WINDOW:
                _refuse(architecture, first, index, f"{'.'.join(filter(None, trait))}: {one} and {other}")
    if any(len(ways) > 1 for ways in windows.values()):
        _check_windows(as_published, [index for ways in windows.values() for index in ways.values()])


def attends_everywhere(architecture: Architecture, model: nn.Module) -> bool:
    """Whether all layers of kinds that are not known otherwise consist only of attention and matrix products."""
    known = len(set(architecture.kinds)) > 1
    convolves = any(isinstance(module, nn.Conv1d) for module in model.modules())
    return (known or not convolves) and any(re.fullmatch(ATTENTION, name) for name, _ in model.named_modules())


def _refuse(architecture: Architecture, one: int, other: int, difference: str) -> None:
    raise BadInput(
        f"layers {one} and {other} differ ({difference}), and for model_type {architecture.family!r} it is not known "
        "which layers are of which kind"
    )


def _all_traits(layers: Sequence[nn.Module]) -> list[_Traits]:
    """The attributes that decide the memory of the layers, without the index of each layer."""
    every = [_traits(layer) for layer in layers]
    for trait in {trait for traits in every for trait in traits}:
        values = [(index, traits[trait]) for index, traits in enumerate(every) if trait in traits]
        counts = len(values) > 1 and all(type(value) is int for _, value in values)
        if counts and len({value - index for index, value in values}) == 1:
            for traits in every:
                traits.pop(trait, None)
    return every


def _traits(layer: nn.Module) -> _Traits:
    found: _Traits = {}
    for path, module in layer.named_modules():
        found[path, "class"] = type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                # Only the presence of a factor matters.
                found[path, name] = bool(value) if isinstance(value, float) else value
    for path, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        found[path, "shape"] = (tuple(tensor.shape), tensor.dtype)
    return found


def _check_windows(architecture: Architecture, first: Sequence[int]) -> None:
    """Trace the first layers and compare those of one kind, without the ends, where other layers begin."""
    depth = min(max(first) + 3, architecture.layers)
    config = {**architecture.config, architecture.depth_key: depth}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:depth]
    short = architecture.model_copy(update={"config": config})
    job = TrainingSetup(short, "full", Stack(gradient_checkpointing="none"))
    storages = trace(job, short.kinds, rank_for(short, short.kinds))
    of_kind: dict[str, int] = {}
    for index, kind in enumerate(short.kinds[1:-1], 1):
        one = of_kind.setdefault(kind, index)
        if _profile(storages, one) != _profile(storages, index):
            _refuse(architecture, one, index, "they hold different tensors")


def _profile(storages: Storages, layer: int) -> list[Any]:
    """The ops of a layer's passes, with the size of each storage and whether it outlives the forward pass."""
    loss = storages.parts.index(LOSS)
    return [
        (storages.ops[moment], *storages.sizes[moment], backward or storages.dead[moment] > loss)
        for backward in (False, True)
        for moment, part in enumerate(storages.parts)
        if part == Part("layer", layer, backward)
    ]
