"""The architectures and GPU types of versions: typed views of the two YAML tables next to this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from autoconf.predictor.cards import Gpu, Model

NEWEST = "3.0.0"  # the version that `make predictor` makes
_DEPTHS = ("n_layer", "num_layers", "n_layers", "num_hidden_layers")  # names of the number of layers in configs
# Settings with the number of learned positions. Rotary positions have no such limit.
_LEARNED_POSITIONS = {"gpt_bigcode": "n_positions", "opt": "max_position_embeddings"}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # names of the number of routed experts in configs


@dataclass(frozen=True)
class _Pattern:
    """How a type of config defines the kind of each layer, and the settings that define it for other layers."""

    kinds: Callable[[dict[str, Any], int], Sequence[str]]
    settings: Callable[[Sequence[str]], dict[str, Any]]
    keys: tuple[str, ...] = ()  # the settings that define it


def _hybrid(config: dict[str, Any], _: int) -> list[str]:
    # transformers 5 writes the second names and reads both.
    same = {"full_attention": "attention", "linear_attention": "mamba"}
    return [same.get(kind, kind) for kind in config["layer_types"]]


def _dense_first(config: dict[str, Any], depth: int) -> list[str]:
    dense = config["first_k_dense_replace"]
    return ["dense"] * dense + ["moe"] * (depth - dense)


def _rotated(config: dict[str, Any], depth: int) -> list[str]:
    if "no_rope_layers" in config:
        return ["rope" if rotates else "nope" for rotates in config["no_rope_layers"]]
    every = config["no_rope_layer_interval"]  # configuration_smollm3.py: the default without a list
    return ["nope" if (index + 1) % every == 0 else "rope" for index in range(depth)]


# Configs whose layers hold different amounts of memory. Sliding and full attention hold the same amount, because
# FlashAttention keeps no mask.
_FIRST_LAYERS_DENSE = _Pattern(
    _dense_first, lambda kinds: {"first_k_dense_replace": kinds.count("dense")}, ("first_k_dense_replace",)
)
_SOME_ROTATE = _Pattern(
    _rotated, lambda kinds: {"no_rope_layers": [int(kind == "rope") for kind in kinds]}, ("no_rope_layers",)
)
_PATTERNS = {
    "granitemoehybrid": _Pattern(_hybrid, lambda kinds: {"layer_types": list(kinds)}, ("layer_types",)),
    "deepseek_v2": _FIRST_LAYERS_DENSE,
    "deepseek_v3": _FIRST_LAYERS_DENSE,
    "glm4_moe": _FIRST_LAYERS_DENSE,
    "llama4_text": _SOME_ROTATE,
    "smollm3": _SOME_ROTATE,
}
_UNIFORM = _Pattern(lambda _, depth: ["layer"] * depth, lambda _: {})


def deciding_keys(model_type: str) -> tuple[str, ...]:
    """Settings that an ``Architecture`` of a type reads, and whose defaults are unknown.

    >>> deciding_keys("smollm3")[-1]
    'no_rope_layers'
    """
    return (*_EXPERTS, *_PATTERNS.get(model_type, _UNIFORM).keys)


class Architecture(BaseModel):
    """One model, of ``architectures.yaml`` or of the user: the settings that determine its shapes, and their source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    config: dict[str, Any]
    parameters: int
    lora_targets: list[str]
    source: str
    assumption: str | None = None
    aliases: list[str] = []
    later_aliases: list[str] = []
    learned_positions: int | None = None  # for a user model; models of the table have it in their configs
    vision: dict[str, Any] = {}  # config of the frozen tower of a vision-language checkpoint, without its text_config

    @property
    def depth_key(self) -> str:
        return next(key for key in _DEPTHS if key in self.config or key == _DEPTHS[-1])

    @property
    def layers(self) -> int:
        return int(self.config[self.depth_key])

    @property
    def kinds(self) -> tuple[str, ...]:
        """One name for each decoder layer, in order; layers of the same name hold the same memory.

        >>> architectures()["deepseek-v2-lite"].kinds[:3]
        ('dense', 'moe', 'moe')
        """
        return tuple(self._pattern.kinds(self.config, self.layers))

    def shortened(self, kinds: Sequence[str]) -> dict[str, Any]:
        """The config of a model with other layers.

        Args:
            kinds: a name of ``self.kinds`` for each layer, in order; at least one.

        Raises:
            ValueError: there is no layer, this architecture has no layer of such a kind, or its config cannot express
                this order.

        >>> architectures()["granite-4.0-h-1b"].shortened(["mamba", "attention"])["layer_types"]
        ['mamba', 'attention']
        """
        if not kinds or not set(kinds) <= set(self.kinds):
            known = ", ".join(sorted(set(self.kinds)))
            raise ValueError(f"kinds: {list(kinds)} are not layers of {self.name}, whose layers are of kind {known}")
        depth = {self.depth_key: len(kinds), **self._of_each_layer(len(kinds))}
        config = {**self.config, **depth, **self._pattern.settings(kinds)}
        if self.model_copy(update={"config": config}).kinds != tuple(kinds):
            raise ValueError(f"kinds: the config of {self.name} cannot express {list(kinds)}")
        return config

    def _of_each_layer(self, depth: int) -> dict[str, Any]:
        """Lists of the config with the same entry for each layer, for this number of layers."""
        lists = {key: value for key, value in self.config.items() if isinstance(value, list)}
        same = {key: value[0] for key, value in lists.items() if value and value == value[:1] * self.layers}
        return {key: [entry] * depth for key, entry in same.items()}

    @property
    def _pattern(self) -> _Pattern:
        return _PATTERNS.get(self.config["model_type"], _UNIFORM)

    @property
    def longest_sample(self) -> int | None:
        """The number of learned positions; ``None`` for rotary positions, which have no such limit."""
        return self.learned_positions or self.config.get(_LEARNED_POSITIONS.get(self.config["model_type"], ""))

    def in_domain(self, *, later_aliases: bool = False) -> Model:
        """The model as an entry of a version's domain.

        Args:
            later_aliases: whether to include aliases that version 1.1.0 does not have.

        >>> architectures()["opt-13b"].in_domain().max_tokens_per_sample
        2048
        """
        return Model(aliases=_aliases(self, later_aliases), max_tokens_per_sample=self.longest_sample)

    @property
    def experts(self) -> int | None:
        """Routed experts of each layer; ``None`` for a dense model."""
        return next((self.config[key] for key in _EXPERTS if self.config.get(key)), None)

    @property
    def is_mixture_of_experts(self) -> bool:
        return self.experts is not None


class GpuType(BaseModel):
    """One row of ``gpus.yaml``: usable memory, the source of the figure, and other names of the type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usable_gib: float
    later_usable_gib: float | None = None
    source: str
    compute_capability: float
    after_2_0_0: bool = False
    unverified: str = ""
    aliases: list[str] = []
    later_aliases: list[str] = []
    earlier_aliases: list[str] = []


def _table(name: str) -> dict[str, Any]:
    return yaml.safe_load((files(__package__) / name).read_text(encoding="utf-8"))


@cache
def architectures() -> dict[str, Architecture]:
    """All architectures by name.

    >>> architectures()["llama-7b"].layers
    32
    """
    return {name: Architecture(name=name, **entry) for name, entry in _table("architectures.yaml").items()}


@cache
def gpu_types() -> dict[str, GpuType]:
    """All GPU types by name, with their sources.

    >>> gpu_types()["L40S"].later_aliases
    ['NVIDIA L40S']
    """
    return {name: GpuType(**entry) for name, entry in _table("gpus.yaml").items()}


@cache
def gpus(*, later_aliases: bool = False, after_2_0_0: bool = False) -> dict[str, Gpu]:
    """All GPU types as entries of a version's domain.

    Args:
        later_aliases: whether to include aliases that version 1.1.0 does not have.
        after_2_0_0: whether the version comes after 2.0.0: with more types and lower readings, with compute
            capabilities, and without names that fit several types.

    >>> gpus()["L40S"].usable_gib
    44.4
    >>> gpus(later_aliases=True, after_2_0_0=True)["Tesla-T4"].compute_capability
    7.5
    """
    up_to_2_0_0 = later_aliases and not after_2_0_0
    return {
        name: Gpu(
            usable_gib=(entry.later_usable_gib if after_2_0_0 else None) or entry.usable_gib,
            aliases=_aliases(entry, later_aliases) + (entry.earlier_aliases if up_to_2_0_0 else []),
            compute_capability=entry.compute_capability if after_2_0_0 else None,
            unverified=entry.unverified,
        )
        for name, entry in gpu_types().items()
        if after_2_0_0 or not entry.after_2_0_0
    }


def models(names: list[str], *, later_aliases: bool = False) -> dict[str, Model]:
    """The models of a version's domain.

    Args:
        names: entries of ``architectures.yaml``.
        later_aliases: whether to include aliases that version 1.1.0 does not have.
    """
    known = architectures()
    return {name: known[name].in_domain(later_aliases=later_aliases) for name in names}


def _aliases(entry: Architecture | GpuType, later: bool) -> list[str]:
    return entry.aliases + (entry.later_aliases if later else [])
