"""Derive the storages of a model's layers from those of a reference model of the same kind with other sizes.

Layers of two models that differ only in their sizes run the same operations on tensors with the same dimensions. So one
trace of a reference is enough for all of them. Each size of the reference has a prime factor that nothing else has, as
the tokens and ranks of ``autoconf.pipeline.tracing.ledger`` have, so the bytes of a storage show of which sizes they
are a product. Heads are traced for each model, because losses choose their chunks by the sizes.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from autoconf.pipeline.catalog import Architecture
from autoconf.pipeline.tracing.ledger import Storages

Sizes = dict[str, int]  # the sizes of a model's layers by name, each independent of the others

# Types whose layers are attention and a dense MLP; whether the width of a head is a setting, or follows from others.
_SETS_HEAD = {"llama": True, "gpt_neox": False, "opt": False, "phi": False}
_MLP = ("intermediate_size", "ffn_dim")
_PRIMES = {"hidden": 7, "vocabulary": 11, "mlp": 13, "head": 37, "groups": 19, "shared_heads": 23}
_BLOCK = 64  # 4-bit weights have a scale for so many parameters; sizes that it does not divide would be rounded


def sizes_of(architecture: Architecture) -> Sizes | None:
    """The sizes of an architecture's layers; ``None`` if its layers cannot be derived from those of a reference.

    >>> from autoconf.pipeline.catalog import architectures
    >>> sizes_of(architectures()["yi-34b"])
    {'hidden': 7168, 'vocabulary': 64000, 'mlp': 20480, 'head': 128, 'groups': 7, 'shared_heads': 8}
    >>> sizes_of(architectures()["mixtral-8x7b-instruct-v0.1"]) is None
    True
    """
    config = architecture.config
    heads = config.get("num_attention_heads", 0)
    shared_heads = config.get("num_key_value_heads") or heads
    if config["model_type"] not in _SETS_HEAD or "head_dim" in config or shared_heads < 2 or heads % shared_heads:
        return None
    hidden, mlp = config["hidden_size"], next(config[name] for name in _MLP if name in config)
    sizes = {
        **({"hidden": hidden} if _SETS_HEAD[config["model_type"]] else {}),
        "vocabulary": config["vocab_size"],
        "mlp": mlp,
        "head": hidden // heads,
        "groups": heads // shared_heads,
        "shared_heads": shared_heads,
    }
    return None if hidden % _BLOCK or mlp % _BLOCK or hidden % heads else sizes


def reference(architecture: Architecture) -> Architecture:
    """The reference for an architecture that has ``sizes_of``: the same except for its sizes."""
    config, sizes = dict(architecture.config), _of_reference(architecture)
    heads = sizes["groups"] * sizes["shared_heads"]
    width = {"hidden_size": sizes.get("hidden", heads * sizes["head"])}
    config |= {"vocab_size": sizes["vocabulary"], "num_attention_heads": heads, **width}
    config |= {name: sizes["mlp"] for name in _MLP if name in config}
    config |= {name: sizes["shared_heads"] for name in ("num_key_value_heads",) if name in config}
    config |= {name: width["hidden_size"] for name in ("word_embed_proj_dim",) if name in config}
    config |= {"head_dim": sizes["head"]} if "hidden" in sizes else {}
    if architecture.longest_sample is None:
        config["max_position_embeddings"] = 4096  # of rotary positions, on which no tensor depends
    return Architecture(
        name="reference",
        family=architecture.family,
        config={**config, architecture.depth_key: 3},
        parameters=0,
        lora_targets=architecture.lora_targets,
        source="",
    )


def _of_reference(architecture: Architecture) -> Sizes:
    own = sizes_of(architecture)
    assert own is not None
    sizes = {name: _PRIMES[name] * _BLOCK for name in own}
    # Attention makes less if no heads share keys and values, so the reference has groups only if the model has.
    sizes |= {"groups": _PRIMES["groups"] if own["groups"] > 1 else 1, "shared_heads": _PRIMES["shared_heads"]}
    if "hidden" in sizes:
        sizes["hidden"] *= sizes["groups"] * sizes["shared_heads"]  # configs require a multiple of the heads
    return sizes


def scaled(storages: Storages, architecture: Architecture) -> Storages:
    """The storages of an architecture's layers.

    Args:
        storages: those of its ``reference``.
        architecture: the architecture, which has ``sizes_of``.
    """
    own, known = sizes_of(architecture), _of_reference(architecture)
    assert own is not None
    sizes = storages.sizes.copy()
    for value in np.unique(sizes[sizes != 0]):
        sizes[storages.sizes == value] = _scaled(float(value), known, own)
    return replace(storages, sizes=sizes)


def _scaled(value: float, known: Sizes, own: Sizes) -> float:
    """The bytes of a product of sizes for other sizes; scales of 4-bit weights are parts of such a product."""
    rest, product = Fraction(value), 1
    for name, size in known.items():
        while size > 1 and rest.numerator % _PRIMES[name] == 0:
            rest, product = rest / size, product * own[name]
    return float(rest * product)
