"""The shapes of a model that decide its arithmetic, read from the settings of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from autoconf.jobs.model_config import known_settings, resolved

# Types whose checkpoints all have another width of a head than hidden size / heads, which model_shapes.json leaves out.
_HEAD_DIM = {"qwen3_moe": 128, "glm4_moe": 128}
_SHARED_EXPERTS = {"llama4_text": 1}  # of types whose configs do not say it
# Types whose MLP has two matrices (up and down). The others have a third one, the gate.
_PLAIN_MLP = {"gpt_bigcode", "gpt_neox", "opt", "phi", "starcoder2"}


@dataclass(frozen=True)
class Shapes:
    """Weights of a causal language model by their use, averaged over its decoder layers.

    Attributes:
        layers: number of decoder layers.
        hidden: width of the hidden states.
        vocabulary: rows of the head.
        attention: weights of the projections of attention (or of a Mamba mixer).
        scores: FLOPs per token of one layer's scores and weighted sum, for each token that is attended to.
        active: weights of the MLP, or of the router, shared and chosen experts, that one token is multiplied with.
        stored: all weights of the MLP or the experts.
        inner: width of the MLP that one token passes, over all chosen experts.
        mixer: width of all queries, keys and values (or of the Mamba mixer's input projection).
        experts: routed experts; 1 for a dense MLP.
        chosen: experts of one token; 1 for a dense MLP.
        family: the ``model_type`` of the config.
    """

    layers: int
    hidden: int
    vocabulary: int
    attention: float
    scores: float
    active: float
    stored: float
    inner: float
    mixer: float
    experts: int
    chosen: int
    family: str

    @property
    def head(self) -> float:
        """Weights of the head."""
        return float(self.vocabulary * self.hidden)

    @property
    def layer_active(self) -> float:
        """Weights of one layer that a token is multiplied with."""
        return self.attention + self.active

    @property
    def layer_stored(self) -> float:
        """All weights of one layer."""
        return self.attention + self.stored


@cache
def known_shapes(model: str) -> Shapes | None:
    """The shapes of a model of the package; ``None`` for another model.

    >>> shapes = known_shapes("mistral-7b-v0.1")
    >>> round((shapes.layers * shapes.layer_stored + 2 * shapes.head) / 1e9, 2)
    7.24
    """
    settings = known_settings(model)
    return None if settings is None else shapes_of(settings)


def shapes_of_config(config: Mapping[str, Any]) -> Shapes | None:
    """The shapes of the model of a ``config.json``; ``None`` if its type is not known here, or a size is missing.

    >>> llama = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
    >>> shapes = shapes_of_config({**llama, "num_attention_heads": 4, "intermediate_size": 128})
    >>> int(shapes.layer_stored), shapes_of_config({"model_type": "rwkv"})
    (40960, None)
    """
    try:
        return shapes_of(resolved(config))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # absent, or of a kind that no model has
        return None


def shapes_of(settings: Mapping[str, Any]) -> Shapes:
    """The shapes of a model.

    Args:
        settings: the settings of its config, with the defaults of its type filled in.
    """
    hidden = _first(settings, "hidden_size", "n_embd")
    layers = _first(settings, "num_hidden_layers", "n_layer")
    attention, scores, mixer = _mixers(settings, hidden, layers)
    dense = settings.get("first_k_dense_replace", 0) / layers  # share of layers without experts
    plain = _mlp(settings, hidden)
    routed = _experts(settings, hidden)
    parts = (
        plain if routed is None else _Mlp(*(dense * a + (1 - dense) * b for a, b in zip(plain, routed, strict=True)))
    )
    experts = _first(settings, "num_local_experts", "num_experts", "n_routed_experts", default=0) or 1
    chosen = settings.get("num_experts_per_tok") or 1
    chosen = chosen if experts > 1 else 1
    sizes = layers, hidden, settings["vocab_size"]
    return Shapes(*sizes, attention, scores, *parts, mixer, experts, chosen, settings["model_type"])


class _Mlp(tuple[float, float, float]):
    """Active weights, stored weights, and inner width."""

    def __new__(cls, active: float, stored: float, inner: float) -> _Mlp:
        return super().__new__(cls, (active, stored, inner))


def _mlp(settings: Mapping[str, Any], hidden: int) -> _Mlp:
    inner = _first(settings, "shared_intermediate_size", "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    matrices = 2 if settings["model_type"] in _PLAIN_MLP else 3
    return _Mlp(matrices * hidden * inner, matrices * hidden * inner, inner)


def _experts(settings: Mapping[str, Any], hidden: int) -> _Mlp | None:
    experts = _first(settings, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    if not experts:
        return None
    width = _first(settings, "moe_intermediate_size", "intermediate_size")
    whole = settings.get("n_shared_experts", _SHARED_EXPERTS.get(settings["model_type"], 0))
    shared = whole * width + settings.get("shared_intermediate_size", 0)
    inner = settings["num_experts_per_tok"] * width + shared
    router = hidden * experts
    return _Mlp(3 * hidden * inner + router, 3 * hidden * (experts * width + shared) + router, inner)


def _mixers(settings: Mapping[str, Any], hidden: int, layers: int) -> tuple[float, float, float]:
    """Weights, FLOPs of scores and width of attention and Mamba mixers, averaged over the layers."""
    kinds = settings.get("layer_types") or []
    mamba = kinds.count("mamba") / layers if settings["model_type"] == "granitemoehybrid" else 0.0
    weights, scores, width = _latent(settings, hidden) if "kv_lora_rank" in settings else _attention(settings, hidden)
    if not mamba:
        return weights, scores, width
    inner = settings["mamba_expand"] * hidden
    state = 2 * settings["mamba_n_groups"] * settings["mamba_d_state"]
    projected = 2 * inner + state + settings["mamba_n_heads"]
    return (
        (1 - mamba) * weights + mamba * (hidden * projected + inner * hidden),
        (1 - mamba) * scores,
        (1 - mamba) * width + mamba * projected,
    )


def _attention(settings: Mapping[str, Any], hidden: int) -> tuple[float, float, float]:
    heads = _first(settings, "num_attention_heads", "n_head")
    each = settings.get("head_dim") or _HEAD_DIM.get(settings["model_type"]) or hidden // heads
    grouped = 1 if settings.get("multi_query") else settings.get("num_key_value_heads") or heads
    width = (heads + 2 * grouped) * each
    return hidden * width + heads * each * hidden, 4.0 * heads * each, width


def _latent(settings: Mapping[str, Any], hidden: int) -> tuple[float, float, float]:
    """Multi-head latent attention (DeepSeek-V2 and V3)."""
    heads, rank = settings["num_attention_heads"], settings["kv_lora_rank"]
    rotated, plain, value = (settings[key] for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    queries = heads * (rotated + plain)
    of_queries = settings.get("q_lora_rank")
    projection = of_queries * (hidden + queries) if of_queries else hidden * queries
    weights = projection + hidden * (rank + rotated) + rank * heads * (plain + value) + heads * value * hidden
    return weights, 2.0 * heads * (rotated + plain + value), queries + rank + rotated + heads * (plain + value)


_ABSENT = object()


def _first(settings: Mapping[str, Any], *names: str, default: Any = _ABSENT) -> Any:
    """The value of the first of several names that the settings have."""
    for name in names:
        if settings.get(name) is not None:
            return settings[name]
    if default is _ABSENT:
        raise KeyError(f"config: has none of {', '.join(names)}")
    return default
