"""Compare jobs of vision-language checkpoints with traces of the whole model, images included.

``python -m autoconf.pipeline.validation.vision`` traces random jobs with a frozen tower at full depth (``rank_trace``)
on one GPU, under DDP and under FSDP, and writes the table next to this file and its section of the documentation.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
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
from autoconf.pipeline.validation.composition import ComposedPeak, row
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.predictor import registry

OUTPUT = Path(__file__).with_name("vision.csv")
PER_CHECKPOINT, SHARDED = 14, 6
BELOW_PERCENT, ABOVE_PERCENT = 0.5, 3.0  # limits of the difference of a composed from a traced peak
# Tokens and image tokens of each sample.
_SIZES = ((509, 251), (2039, 509), (4099, 3671), (8209, 1009))
_REGIMES: tuple[dict[str, Any], ...] = (
    {}, {}, {"mixed_precision": "bf16"}, {"torch_dtype": "float32", "mixed_precision": "bf16"},
)  # fmt: skip
_CHECKPOINTING = ("non-reentrant", "none", "reentrant")
_OF_JOB = ["model", "method", "settings", "gpus", "tokens_per_gpu"]
_COMMAND, _WHAT = "python -m autoconf.pipeline.validation.vision", "vision towers"


def jobs(name: str, count: int, shardings: Sequence[str] = ("ddp",)) -> Iterator[tuple[TrainingSetup, int]]:
    """Random jobs of a checkpoint, each with its tokens on a GPU: methods, places and sizes in turn."""
    replicated = tuple(shardings) == ("ddp",)
    chance = random.Random(name if replicated else f"{name} {shardings}")
    methods = cast(tuple[Method, ...], get_args(Method))
    for index, (tokens, images) in zip(range(count), itertools.cycle(_SIZES), strict=False):
        method = methods[index % len(methods)] if replicated else "lora"
        settings = {
            **chance.choice(_REGIMES if method != "qlora" else _REGIMES[:3]),
            "sharding": shardings[index % len(shardings)],
            "gradient_checkpointing": chance.choice(_CHECKPOINTING),
            "gradient_accumulation": chance.choice((False, True)),
            "loss": chance.choice(("full", "chunked")),
            "quantization": "nf4" if method == "qlora" else "none",
            "upcast_unquantized": chance.choice(("none", "all")) if method == "qlora" and replicated else "none",
            "image_share": images / tokens,
        }
        if method != "full":
            settings |= {"lora_r": chance.choice((8, 64)), "lora_targets": chance.choice(("default", "attention"))}
        settings["micro_batches"] = 4 if settings["gradient_accumulation"] else 1
        if settings["upcast_unquantized"] == "all":
            settings["mixed_precision"] = "bf16"
        stack = Stack.model_validate(settings)
        gpus = ((1, 8) if replicated else (2, 8))[index // 2 % 2]
        yield TrainingSetup(with_tower(name), method, stack, gpus, images, stack.micro_batches), SAMPLES * tokens


def main(
    names: Annotated[list[str] | None, typer.Argument(help="checkpoints; by default all")] = None,
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = registry.MODELS / NEWEST,
    per_checkpoint: Annotated[int, typer.Option(help="jobs of each checkpoint without sharding")] = PER_CHECKPOINT,
    sharded: Annotated[int, typer.Option(help="jobs of each checkpoint under FSDP")] = SHARDED,
) -> None:
    """Run the comparisons; write the table and the section of the documentation. Rows of other jobs stay."""
    table, missed = ModelsTable.read(figures), 0
    kinds = ((per_checkpoint, ("ddp",)), (sharded, ("fsdp2", "fsdp1")))
    every = (jobs(name, *kind) for name in names or checkpoints() for kind in kinds)
    for job, tokens in itertools.chain.from_iterable(every):
        found = compared(table, job, tokens)
        missed += not -BELOW_PERCENT <= found.difference_percent <= ABOVE_PERCENT
        Console().print(_row(found), soft_wrap=True)
        rows = pd.concat([pd.read_csv(OUTPUT), pd.DataFrame([_row(found)])]).drop_duplicates(_OF_JOB, keep="last")
        rows = rows.sort_values("model", key=lambda models: models.map([*checkpoints()].index), kind="stable")
        rows.to_csv(OUTPUT, index=False, lineterminator="\n")
        write_section(VALIDATION, _WHAT, _COMMAND, _section(rows))
    Console().print(f"{missed} are outside of -{BELOW_PERCENT:g} to +{ABOVE_PERCENT:g} %")
    sys.exit(int(missed > 0))


def _row(comparison: ComposedPeak) -> dict[str, Any]:
    found = row(comparison)
    kept = [part for part in found["settings"].split(", ") if not part.startswith(("image_share", "micro_batches"))]
    images = SAMPLES * comparison.job.image_tokens
    return {**found, "settings": ", ".join(kept), "image_tokens_per_gpu": images}


def _section(rows: pd.DataFrame) -> str:
    sharding = rows["settings"].str.extract(r"\bsharding=([^,]*)")[0].fillna(Stack().sharding)
    sharding = sharding.where(rows["gpus"] > 1, "one GPU")
    summary = [
        {
            "model": model,
            "GPUs": where,
            "jobs": len(found),
            "median": f"{found.abs().median():.3f} %",
            "lowest": f"{found.min():+.2f} %",
            "highest": f"{found.max():+.2f} %",
        }
        for (model, where), found in rows.groupby([rows["model"], sharding], sort=False)["difference_percent"]
    ]
    return (
        f"{len(rows)} random jobs with a frozen tower against the whole model traced with images at full depth "
        f"([the table](../../autoconf/pipeline/validation/{OUTPUT.name})):\n\n{markdown(summary)}"
    )


if __name__ == "__main__":
    typer.run(main)
