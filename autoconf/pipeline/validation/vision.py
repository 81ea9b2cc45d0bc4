"""Compare jobs of vision-language checkpoints with traces of the whole model, images included.

``python -m autoconf.pipeline.validation.vision`` traces random jobs with a frozen tower at full depth (``rank_trace``)
on one GPU and under DDP, and writes the table next to this file and its section of the documentation.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import pandas as pd
import typer
from rich.console import Console

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import NEWEST
from autoconf.pipeline.report import VALIDATION, markdown, write_section
from autoconf.pipeline.towers import checkpoints, with_tower
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import SAMPLES
from autoconf.pipeline.tracing.ways import Method
from autoconf.pipeline.validation.composition import ComposedPeak, row, summary
from autoconf.pipeline.validation.whole_jobs import compare_jobs
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("vision.csv")
PER_CHECKPOINT = 14
BELOW_PERCENT, ABOVE_PERCENT = 0.5, 3.0  # limits of the difference of a composed from a traced peak
# Tokens and image tokens of each sample.
_SIZES = ((509, 251), (2039, 509), (4099, 3671), (8209, 1009))
_REGIMES: tuple[dict[str, Any], ...] = (
    {}, {}, {"mixed_precision": "bf16"}, {"torch_dtype": "float32", "mixed_precision": "bf16"},
)  # fmt: skip
_CHECKPOINTING = ("non-reentrant", "none", "reentrant")
_COMMAND, _WHAT = "python -m autoconf.pipeline.validation.vision", "vision towers"


def jobs(name: str, count: int) -> Iterator[tuple[TrainingSetup, int]]:
    """Random jobs of a checkpoint, each with its tokens on a GPU: methods, places and sizes in turn."""
    chance = random.Random(name)
    methods = cast(tuple[Method, ...], get_args(Method))
    for index, (tokens, images) in zip(range(count), itertools.cycle(_SIZES), strict=False):
        method = methods[index % len(methods)]
        settings = {
            **chance.choice(_REGIMES if method != "qlora" else _REGIMES[:3]),
            "sharding": "ddp",
            "gradient_checkpointing": chance.choice(_CHECKPOINTING),
            "gradient_accumulation": chance.choice((False, True)),
            "loss": chance.choice(("full", "chunked")),
            "quantization": "nf4" if method == "qlora" else "none",
            "upcast_unquantized": chance.choice(("none", "all")) if method == "qlora" else "none",
            "image_share": images / tokens,
        }
        if method != "full":
            settings |= {"lora_r": chance.choice((8, 64)), "lora_targets": chance.choice(("default", "attention"))}
        settings["micro_batches"] = 4 if settings["gradient_accumulation"] else 1
        if settings["upcast_unquantized"] == "all":
            settings["mixed_precision"] = "bf16"
        stack = Stack.model_validate(settings)
        gpus = (1, 8)[index // 2 % 2]
        yield TrainingSetup(with_tower(name), method, stack, gpus, images, stack.micro_batches), SAMPLES * tokens


def main(
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = registry.MODELS / NEWEST,
    per_checkpoint: Annotated[int, typer.Option(help="jobs of each checkpoint", min=1)] = PER_CHECKPOINT,
) -> None:
    """Run the comparisons; write the table and the section of the documentation."""
    console, table = Console(), ModelsTable.read(figures)
    every = itertools.chain.from_iterable(jobs(name, per_checkpoint) for name in checkpoints())
    found = compare_jobs(table, every, OUTPUT, _row)
    write_section(VALIDATION, _WHAT, _COMMAND, _section(found))
    missed = sum(not -BELOW_PERCENT <= c.difference_percent <= ABOVE_PERCENT for c in found)
    console.print(pd.DataFrame(summary(found)).to_string(index=False), soft_wrap=True)
    console.print(f"{len(found) - missed} of {len(found)} are within -{BELOW_PERCENT:g} to +{ABOVE_PERCENT:g} %")
    sys.exit(int(missed > 0))


def _row(comparison: ComposedPeak) -> dict[str, Any]:
    found = row(comparison)
    kept = [part for part in found["settings"].split(", ") if not part.startswith(("image_share", "micro_batches"))]
    images = SAMPLES * comparison.job.image_tokens
    return {**found, "settings": ", ".join(kept), "image_tokens_per_gpu": images}


def _section(found: list[ComposedPeak]) -> str:
    return (
        f"{len(found)} random jobs with a frozen tower, on one GPU and under DDP, against the whole model traced with "
        f"images at full depth ([the table](../../autoconf/pipeline/validation/{OUTPUT.name})):\n\n"
        f"{markdown(summary(found))}"
    )


if __name__ == "__main__":
    typer.run(main)
