"""Compare jobs of every objective with traces of whole models under TRL's own losses.

``pip install trl==1.9.0`` first. ``python -m autoconf.pipeline.validation.objective_jobs`` traces jobs at full depth,
full and with adapters, with and without checkpoints, on one GPU and under DDP, and writes the table next to this file.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from autoconf.jobs.stack import Objective, Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.validation.composition import ComposedPeak
from autoconf.pipeline.validation.objective_rank import load
from autoconf.pipeline.validation.trained_modules import MODELS
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("objective_jobs.csv")
BELOW_PERCENT = 1.0  # a composed peak may be this much below the traced one
_SEED = 20261201
_REGIMES: dict[str, tuple[dict[str, Any], ...]] = {
    "full": ({}, {"mixed_precision": "bf16"}, {"mixed_precision": "bf16", "torch_dtype": "float32"}),
    "lora": ({}, {"mixed_precision": "bf16", "adapter_dtype": "float32"}),
}
TOKENS = (1_018, 4_098)


def jobs() -> Iterator[tuple[TrainingSetup, int]]:
    """Jobs of each objective and method with and without checkpoints, and the tokens of a micro-batch."""
    chance, objectives = random.Random(_SEED), [value for value in get_args(Objective) if value != "sft"]
    every = itertools.product(objectives, _REGIMES, (True, False))
    for number, (objective, method, recomputes) in enumerate(every):
        settings = {
            **chance.choice(_REGIMES[method]),
            "objective": objective,
            "sharding": "ddp",
            "gradient_checkpointing": chance.choice(("reentrant", "non-reentrant")) if recomputes else "none",
            "gradient_accumulation": chance.choice((False, True)),
            **({"lora_r": 16} if method == "lora" else {}),
        }
        model, gpus = MODELS[(number + number // len(MODELS)) % len(MODELS)], chance.choice((1, 8))
        yield TrainingSetup(architectures()[model], method, Stack.model_validate(settings), gpus), chance.choice(TOKENS)


def _print_by_objective(found: list[ComposedPeak]) -> None:
    by: defaultdict[str, list[float]] = defaultdict(list)
    for each in found:
        by[each.job.stack.objective].append(each.difference_percent)
        by["all"].append(each.difference_percent)
    for objective, some in by.items():
        spread = f"median {np.median(np.abs(some)):.2f} %, {min(some):+.2f} to {max(some):+.2f} %"
        print(f"{objective}: {len(some)} jobs, {spread}")


def main() -> None:
    """Run the comparisons, and write the table."""
    found = compare_jobs(ModelsTable.read(registry.MODELS / NEWEST), jobs(), OUTPUT, load=load)
    _print_by_objective(found)
    sys.exit(int(min(c.difference_percent for c in found) < -BELOW_PERCENT))


if __name__ == "__main__":
    main()
