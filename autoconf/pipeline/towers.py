"""Vision-language checkpoints as the architectures of their language models with a tower, from ``towers.yaml``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from autoconf.pipeline.catalog import Architecture, architectures


class Checkpoint(BaseModel):
    """One entry of ``towers.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language_model: str
    config: dict[str, Any]
    parameters: int
    source: str
    aliases: list[str]


@cache
def checkpoints() -> dict[str, Checkpoint]:
    """All checkpoints by name.

    >>> checkpoints()["qwen2.5-vl-7b"].language_model
    'qwen2.5-7b'
    """
    table = yaml.safe_load((files(__package__) / "towers.yaml").read_text(encoding="utf-8"))
    return {name: Checkpoint(**entry) for name, entry in table.items()}


def with_tower(name: str) -> Architecture:
    """A checkpoint as the architecture of its language model, with a tower.

    >>> with_tower("qwen2.5-vl-7b").vision["vision_config"]["depth"]
    32
    """
    known = checkpoints()[name]
    update = {
        "name": name, "vision": known.config, "parameters": known.parameters, "source": known.source,
        "aliases": known.aliases, "later_aliases": [],
    }  # fmt: skip
    return architectures()[known.language_model].model_copy(update=update)
