"""Compare jobs that train embeddings or head beside adapters under DeepSpeed's ZeRO with tensors in its real processes.

``python -m autoconf.pipeline.validation.trained_zero`` runs small models at full depth, as ``zero_truth`` does, and
writes the table next to this file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.jobs.stack import Stack
from autoconf.memory.zero_job import ZERO
from autoconf.pipeline.validation.zero_truth import ZeroCheck, compare, row, small

OUTPUT = Path(__file__).with_name("trained_zero.csv")
# What is trained, and the model: architecture, hidden size, vocabulary, layers. The head of Llama is tied.
_TRAINED: tuple[tuple[str, tuple[str, int, int, int]], ...] = (
    ("embeddings", ("mistral-7b-v0.1", 128, 1024, 4)),
    ("head", ("llama3.2-1b", 128, 4096, 8)),
    ("embeddings_and_head", ("mistral-7b-v0.1", 192, 4096, 6)),
    ("embeddings_and_head", ("llama3.2-1b", 128, 4096, 8)),
)


def checks() -> Iterator[ZeroCheck]:
    """Each of them under each stage, with and without accumulation and checkpoints in turn."""
    for number, (trained, model) in enumerate(_TRAINED):
        for stage, sharding in enumerate(ZERO, 1):
            other = (number + stage) % 2
            settings: dict[str, Any] = {
                "mixed_precision": "bf16",
                "lora_r": 16,
                "sharding": sharding,
                "trained_modules": trained,
                "gradient_accumulation": bool(other),
                "gradient_checkpointing": ("none", "non-reentrant")[number % 2],
                "lora_targets": ("default", "all-linear")[other],
            }
            yield ZeroCheck(small(*model), "lora", Stack.model_validate(settings), 2, 127)


def main() -> None:
    """Run the comparisons, and write the table; exit code 1 if a composed peak is below the measured one."""
    results = compare([*checks()])
    table = pd.DataFrame([{"trained_modules": r.check.stack.trained_modules, **row(r)} for r in results])
    table.to_csv(OUTPUT, index=False, lineterminator="\n")
    print(table.to_string(index=False))
    sys.exit(int(min(result.difference_percent for result in results) < 0))


if __name__ == "__main__":
    main()
