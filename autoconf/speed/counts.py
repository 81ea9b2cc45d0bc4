"""Work that was counted on the training code, as ratios to the closed form, by family of models and way of training.

``python -m autoconf.pipeline.throughput.counted`` counts it and writes ``counts.json``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from autoconf.jobs.stack import Stack

TABLE = Path(__file__).with_name("counts.json")
OTHERS = "llama"  # the family whose counts others have where they were not counted themselves


class Counts(NamedTuple):
    """What was counted, divided by the closed form.

    Attributes:
        operations: kernels of a decoder layer.
        outside: kernels outside of the layers; a number, no ratio.
        weights: bytes of the layers' weights and their gradients.
        activations: bytes of the layers' activations, for each token.
        head: bytes of the weights of head and embeddings, and their gradients.
        loss: bytes of logits and loss, for each token.
    """

    operations: float = 1.0
    outside: float = 0.0
    weights: float = 1.0
    activations: float = 1.0
    head: float = 1.0
    loss: float = 1.0


CLOSED_FORM = Counts()


def way(method: str, stack: Stack) -> str:
    """How a job trains, as far as it changes the operations of a layer.

    >>> way("qlora", Stack(quantization="nf4", kernels=("fused_lora",), gradient_checkpointing="none"))
    'qlora, fused_lora'
    >>> way("full", Stack())
    'full, checkpoints'
    """
    fused = [name for name in ("fast_rms_layernorm", "fused_lora") if name in stack.kernels]
    adapters = "full" if method == "full" else "qlora" if stack.quantization != "none" else "lora"
    checkpoints = [] if stack.gradient_checkpointing == "none" else ["checkpoints"]
    return ", ".join([adapters, *fused, *checkpoints])


def counts_of(family: str, method: str, stack: Stack) -> Counts:
    """The counts of a job.

    Args:
        family: the ``model_type`` of the model's config.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.

    >>> round(counts_of("mistral", "full", Stack()).operations, 1)
    1.2
    >>> counts_of("another", "lora", Stack()) == counts_of("llama", "lora", Stack())
    True
    """
    table, name = _table(), way(method, stack)
    ways = table.get(family, table[OTHERS])
    return ways[name] if name in ways else table[OTHERS][name]


@cache
def _table() -> dict[str, dict[str, Counts]]:
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return {family: {name: Counts(*figures) for name, figures in ways.items()} for family, ways in content.items()}
