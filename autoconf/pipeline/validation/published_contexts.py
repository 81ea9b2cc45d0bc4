"""Compare the longest samples of QLoRA under the stack ``unsloth`` with those that unsloth published.

``python -m autoconf.pipeline.validation.published_contexts`` prints them. The figures next to this file are those of
https://unsloth.ai/docs/basics/unsloth-benchmarks and https://unsloth.ai/blog/llama3-3 (December 2024): the longest
samples of Llama 3.1 8B and 3.3 70B, which has the shapes of 3.1, with nf4, adapters of rank 32 on all linear layers and
one sample per batch, by unsloth and by "Hugging Face + FA2". They name the memory of a GPU; the table has a type with
that memory. The releases then are not those of the stack, and how a length was found to fit is not said.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from autoconf.jobs.presets import SETTINGS, training_stack
from autoconf.jobs.stack import Stack
from autoconf.memory.model import StackMemory
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import NEWEST
from autoconf.planner.frontier import most_tokens
from autoconf.predictor import registry
from autoconf.predictor.predictor import Predictor

PUBLISHED = Path(__file__).with_name("published_contexts.csv")
_JOB: dict[str, Any] = {"lora_r": 32, "lora_targets": "all-linear"}
# What "Hugging Face + FA2" was is not said: the most that was usual, PEFT's prepared base and all logits.
_OTHER = {
    "optim": "adamw_8bit", "mixed_precision": "bf16", "adapter_dtype": "float32", "attention": "flash",
    "gradient_checkpointing": "reentrant", "upcast_unquantized": "all",
}  # fmt: skip


class Published(NamedTuple):
    """A published longest sample, and that of a version: as answered, and as the peak without any margin allows."""

    model: str
    gpu_gb: int
    stack: str
    tokens: int
    answered: int
    without_margin: int

    @property
    def difference_percent(self) -> float:
        return 100 * (self.answered / self.tokens - 1)


def stack_of(name: str) -> Stack:
    """The training stack of a column of the published table."""
    settings = {**_JOB, **({} if name == "unsloth" else _OTHER)}
    preset = name if name == "unsloth" else "reference"
    return training_stack("qlora", True, preset, *(settings.get(field) for field in SETTINGS))


def compared(predictor: Predictor) -> list[Published]:
    """Each published figure with those of a version."""
    memory = predictor.memory
    assert isinstance(memory, StackMemory)
    found = []
    for model, gpu, gpu_gb, name, tokens in pd.read_csv(PUBLISHED).itertuples(index=False):
        rows = np.array([memory.row(model, "qlora", stack_of(name))])
        usable, one = np.array([predictor.domain.gpus[gpu].usable_gib]), np.array([1])
        answered = most_tokens(predictor, rows, usable, one)
        found.append(Published(model, gpu_gb, name, tokens, int(answered[0]), _without_margin(memory, rows, usable[0])))
    return found


def _without_margin(memory: StackMemory, rows: Any, usable_gib: float) -> int:
    fits, too_many, one = 0, 2**22, np.array([1])
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        peak = memory.peak_bytes(rows, one, np.array([middle]))[0]
        fits, too_many = (middle, too_many) if peak <= usable_gib * GIB else (fits, middle)
    return fits


def summary(found: list[Published]) -> str:
    """How far the answers of the stack ``unsloth`` are from what was published, as answers under it say."""
    differences = [one.difference_percent for one in found if one.stack == "unsloth"]
    worst = math.ceil(max(map(abs, differences)))
    longer = ", all of which unsloth reaches with less memory" if max(differences) < 0 else ""
    return f"within {worst} % of {len(differences)} published figures{longer}"


def main() -> None:
    """Print the figures, and the sentence."""
    console, found = Console(), compared(registry.load(NEWEST))
    rows = [{**one._asdict(), "difference_percent": round(one.difference_percent, 1)} for one in found]
    console.print(pd.DataFrame(rows).to_string(index=False), soft_wrap=True)
    console.print(summary(found), soft_wrap=True)


if __name__ == "__main__":
    main()
