"""The architectures and GPUs that versions are built from: typed views of the two YAML tables beside this file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from autoconf.predictors import Gpu, Model


class Architecture(BaseModel):
    """One model of ``architectures.yaml``: what fixes its shapes, and where the figures come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    config: dict[str, Any]
    parameters: int
    lora_targets: list[str]
    source: str
    assumption: str | None = None
    aliases: list[str] = []

    @property
    def depth_key(self) -> str:
        return "n_layer" if "n_layer" in self.config else "num_hidden_layers"

    @property
    def layers(self) -> int:
        return int(self.config[self.depth_key])

    @property
    def longest_sample(self) -> int | None:
        """Tokens that learned positions allow; ``None`` for rotary positions, which have no such limit."""
        return self.config.get("n_positions")

    @property
    def is_mixture_of_experts(self) -> bool:
        return "num_local_experts" in self.config


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
def gpus() -> dict[str, Gpu]:
    """All GPU types by name.

    >>> gpus()["L40S"].usable_gib
    44.4
    """
    return {name: Gpu(**entry) for name, entry in _table("gpus.yaml").items()}


def models(names: list[str]) -> dict[str, Model]:
    """The models of a version's domain."""
    known = architectures()
    return {
        name: Model(aliases=known[name].aliases, max_tokens_per_sample=known[name].longest_sample) for name in names
    }
