"""The settings under which a model is traced: every combination that changes its layers or its head, each once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from autoconf.jobs.stack import LoraTargets
from autoconf.memory.profile import IN_ORDER, UPCAST_NORMS, HeadWay, LayerWay

Method = Literal["full", "lora", "qlora"]
ADAPTING: tuple[Method, ...] = ("lora", "qlora")
TARGETS: tuple[LoraTargets, ...] = ("default", "attention", "all-linear")
_CHECKPOINTING = ("none", "reentrant", "non-reentrant")
_LOSSES = ("full", "chunked", "chunked_nll")
# dtype of parameters, and mixed precision; for adapters also their own dtype, which PEFT takes from their base layer
# or sets to float32.
_FULL = [("bfloat16", "no"), ("bfloat16", "bf16"), ("float32", "no"), ("float32", "bf16")]
_LORA = [(*regime, "float32") for regime in _FULL] + [(*regime, "bfloat16") for regime in _FULL[:2]]


def layer_ways() -> Iterator[LayerWay]:
    """All combinations of settings that change the layers."""
    for (dtype, mixed), checkpointing in itertools.product(_FULL, _CHECKPOINTING):
        yield LayerWay("full", dtype, mixed, dtype, False, checkpointing, "default")
    for method, regime, dropout, checkpointing, targets in itertools.product(
        ADAPTING, _LORA, (False, True), _CHECKPOINTING, TARGETS
    ):
        # No preset has dropout in bfloat16 adapters without mixed precision, so it is omitted.
        asked_for = not dropout or regime != ("bfloat16", "no", "bfloat16")
        if asked_for and (method == "lora" or regime[0] == "bfloat16"):
            yield LayerWay(method, *regime, dropout, checkpointing, targets)
            if method == "qlora" and regime[1] == "bf16":  # as PEFT prepares it, which is rare without autocast
                yield LayerWay(method, "float32", *regime[1:], dropout, checkpointing, targets)


def head_ways() -> Iterator[HeadWay]:
    """All combinations of settings that change head and loss."""
    for trains, (dtype, mixed), loss in itertools.product((True, False), _FULL, _LOSSES):
        yield HeadWay(trains, dtype, mixed, loss)
    for loss in _LOSSES:
        yield HeadWay(False, UPCAST_NORMS, "bf16", loss)


def all_ways(kinds: Sequence[str] = ()) -> list[LayerWay | HeadWay]:
    """All combinations of settings under which a model is traced, given the kinds of its layers in order."""
    return [*layer_ways(), *head_ways(), *in_order_ways(kinds)]


def in_order_ways(kinds: Sequence[str]) -> Iterator[LayerWay]:
    """The ways in which a model's first layers run without gradients, because adapters are on attention alone.

    Checkpoints give a model's inputs gradients (transformers 5.23, modeling_utils.py, enable_input_grads).
    """
    if "attention" not in kinds or kinds[0] != "mamba":
        return
    for way in layer_ways():
        if way.method != "full" and way.lora_targets != "all-linear" and way.gradient_checkpointing == "none":
            yield way._replace(lora_targets=way.lora_targets + IN_ORDER)
