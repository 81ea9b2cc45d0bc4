"""Compare jobs with DoRA, whose activations are bounded, with traces of PEFT's ``use_dora``.

``python -m autoconf.pipeline.validation.dora`` traces jobs at full depth, and writes the table next to this file.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.ways import ADAPTING
from autoconf.pipeline.validation.trained_modules import MODELS, TOKENS
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("dora.csv")
_SEED = 20261130
_REGIMES: tuple[dict[str, Any], ...] = (
    {},
    {"mixed_precision": "bf16", "adapter_dtype": "float32"},
    {"mixed_precision": "bf16", "adapter_dtype": "float32", "lora_dropout": 0.05},
)


def jobs() -> Iterator[tuple[TrainingSetup, int]]:
    """Jobs of each model and method with and without checkpoints, and the tokens of a micro-batch.

    They run on one GPU or under DDP, and those of three models under FSDP2.
    """
    chance = random.Random(_SEED)
    for sharding, places, models in (("ddp", (1, 8), MODELS), ("fsdp2", (8,), MODELS[:3])):
        for number, (model, method, checkpointing) in enumerate(
            itertools.product(models, ADAPTING, ("none", "non-reentrant"))
        ):
            settings = {
                **_REGIMES[number % 3],
                "use_dora": True,
                "sharding": sharding,
                "lora_targets": chance.choice(("default", "attention", "all-linear")),
                "gradient_checkpointing": checkpointing,
                "lora_r": 16,
                "quantization": "nf4" if method == "qlora" else "none",
            }
            job = TrainingSetup(architectures()[model], method, Stack.model_validate(settings), chance.choice(places))
            yield job, chance.choice(TOKENS)


def main() -> None:
    """Run the comparisons, and write the table."""
    found = compare_jobs(ModelsTable.read(registry.MODELS / NEWEST), jobs(), OUTPUT)
    sys.exit(int(min(c.difference_percent for c in found) < 0))


if __name__ == "__main__":
    main()
