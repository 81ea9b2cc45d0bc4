"""Compare jobs with adapters on some of the layers with traces of PEFT's ``layers_to_transform``.

``python -m autoconf.pipeline.validation.lora_layers`` traces jobs at full depth under PyTorch's own wrappers
(``rank_trace``), and writes the table next to this file.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.ways import ADAPTING, TARGETS
from autoconf.pipeline.validation.composition import summary
from autoconf.pipeline.validation.trained_modules import MODELS, TOKENS
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("lora_layers.csv")
BELOW_PERCENT = 0.3  # as far below is one of the jobs under FSDP2 with adapters on all layers, too
_SEED = 20261201
_PLACES = ((1, "fsdp2"), (8, "fsdp2"), (8, "ddp"), (8, "fsdp1"))
_REGIMES: tuple[dict[str, Any], ...] = (
    {},
    {"mixed_precision": "bf16", "adapter_dtype": "float32"},
    {"mixed_precision": "bf16", "adapter_dtype": "float32", "lora_dropout": 0.05},
)


def jobs() -> Iterator[TrainingSetup]:
    """Each model with adapters on the second half, the first half, every other layer and the last one."""
    chance = random.Random(_SEED)
    for number, (model, kind) in enumerate(itertools.product(MODELS, range(4))):
        depth, (gpus, sharding) = architectures()[model].layers, _PLACES[(number + number // 4) % 4]
        layers = (range(depth // 2, depth), range(depth // 2), range(0, depth, 2), range(depth - 1, depth))[kind]
        for checkpointing in ("none", chance.choice(("reentrant", "non-reentrant"))):
            method = chance.choice(ADAPTING)
            settings = {
                **chance.choice(_REGIMES),
                "lora_layers": tuple(layers),
                "sharding": sharding,
                "lora_targets": chance.choice(TARGETS),
                "gradient_checkpointing": checkpointing,
                "gradient_accumulation": chance.choice((False, True)),
                "lora_r": 16,
                "quantization": "nf4" if method == "qlora" else "none",
            }
            yield TrainingSetup(architectures()[model], method, Stack.model_validate(settings), gpus)


def main() -> None:
    """Run the comparisons, and write the table."""
    every = zip(jobs(), itertools.cycle(TOKENS), strict=False)
    found = compare_jobs(ModelsTable.read(registry.MODELS / NEWEST), every, OUTPUT)
    for checkpoints in (True, False):
        some = [c for c in found if (c.job.stack.gradient_checkpointing != "none") == checkpoints]
        print(f"with{'' if checkpoints else 'out'} checkpoints")
        print(pd.DataFrame(summary(some)).to_string(index=False))
    sys.exit(int(min(c.difference_percent for c in found) < -BELOW_PERCENT))


if __name__ == "__main__":
    main()
