"""Compare composed memory of chosen jobs with traces of the whole model.

- Mamba layers before the first attention keep nothing for a backward pass if adapters are on attention alone and
  nothing gives the inputs gradients. Versions up to 2.0.0 count them as all others.
- With few tokens FSDP2 holds most when it gathers the first layer after the root.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.profile import IN_ORDER
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Unsupported
from autoconf.memory.ways import ORDERS, RULES, layer_way
from autoconf.pipeline.catalog import NEWEST, architectures
from autoconf.pipeline.report import VALIDATION, markdown, write_section
from autoconf.pipeline.tracing.ledger import rank_for
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup
from autoconf.pipeline.tracing.trace_model import short_stack, traced_layers
from autoconf.pipeline.tracing.ways import in_order_ways
from autoconf.pipeline.validation.composition import whole_run
from autoconf.pipeline.validation.named_modules import table_of
from autoconf.predictor.registry import MODELS

OUTPUT = Path(__file__).with_name("chosen_jobs.csv")
LIMIT_PERCENT = 0.5
_COMMAND = "python -m autoconf.pipeline.validation.chosen_jobs"
_PLAIN: dict[str, Any] = {"gradient_checkpointing": "none", "lora_targets": "attention"}
_FEW: dict[str, Any] = {"sharding": "fsdp2", "gradient_accumulation": False}
# Model, method, GPUs, tokens of a micro-batch on each GPU, and settings other than ``_PLAIN`` or ``_FEW``.
_Row = tuple[str, Method, int, int, dict[str, Any]]
_FIRST_ADAPTER: tuple[_Row, ...] = (
    ("granite-4.0-h-350m", "lora", 1, 1018, {"adapter_dtype": "float32"}),
    ("granite-4.0-h-350m", "lora", 8, 8198, {"lora_targets": "default"}),
    ("granite-4.0-h-350m", "qlora", 1, 8198, {"mixed_precision": "bf16", "adapter_dtype": "float32"}),
    ("granite-4.0-h-350m", "qlora", 1, 8198, {"mixed_precision": "bf16", "gradient_checkpointing": "non-reentrant"}),
    ("granite-4.0-h-1b", "lora", 1, 8198, {}),
    ("granite-4.0-h-1b", "lora", 8, 8198, {"sharding": "fsdp1", "mixed_precision": "bf16"}),
    ("granite-4.0-h-1b", "lora", 8, 1018, {"sharding": "ddp", "lora_dropout": 0.1, "adapter_dtype": "float32"}),
    ("granite-4.0-h-micro", "lora", 8, 8198, {"lora_targets": "default", "lora_r": 64}),
    ("granite-4.0-h-micro", "qlora", 1, 1018, {"mixed_precision": "bf16", "gradient_checkpointing": "non-reentrant"}),
    ("granite-4.0-h-tiny", "lora", 1, 8198, {}),
    ("granite-4.0-h-tiny", "lora", 8, 8198, {"gradient_accumulation": False, "loss": "chunked"}),
    ("granite-4.0-h-small", "lora", 8, 8198, {"adapter_dtype": "float32"}),
    ("granite-4.0-h-1b", "lora", 1, 1018, {"gradient_checkpointing": "non-reentrant"}),  # whose inputs have gradients
    ("granite-4.0-350m", "lora", 1, 8198, {}),  # without Mamba layers
)
_FIRST_GATHER: tuple[_Row, ...] = (
    ("pythia-160m", "lora", 8, 74, {}),
    ("pythia-160m", "lora", 2, 74, {"torch_dtype": "float32", "mixed_precision": "bf16"}),
    ("pythia-160m", "lora", 8, 74, {"adapter_dtype": "float32", "lora_r": 64, "lora_targets": "all-linear"}),
    ("pythia-160m", "qlora", 8, 74, {"mixed_precision": "bf16"}),
    ("opt-125m", "full", 64, 74, {"torch_dtype": "float32", "mixed_precision": "bf16"}),
    ("gemma-3-1b", "lora", 64, 34, {"gradient_accumulation": True}),
    ("smollm2-135m", "lora", 64, 34, {"gradient_accumulation": True}),
    ("granite-4.0-350m", "lora", 8, 74, {}),
    ("granite-4.0-h-350m", "lora", 8, 74, {}),
    ("deepseek-v2-lite", "lora", 8, 74, {}),  # whose first layer is small
)
SECTIONS = {"layers before the first adapter": (_FIRST_ADAPTER, _PLAIN), "few tokens": (_FIRST_GATHER, _FEW)}


def jobs(section: str) -> Iterator[tuple[TrainingSetup, int]]:
    """The jobs of a section, with the tokens of a micro-batch on each GPU."""
    rows, same = SECTIONS[section]
    for model, method, gpus, tokens, settings in rows:
        base = {"quantization": "nf4"} if method == "qlora" else {}
        stack = Stack.model_validate({**same, **settings, **base})
        yield TrainingSetup(architectures()[model], method, stack, gpus), tokens


def in_order(table: ModelsTable, job: TrainingSetup) -> ModelsTable:
    """A table with the way of a job in which its first layers keep nothing, traced now if a version lacks it."""
    known = table.figures(job.architecture.name)
    way = layer_way(job.stack, job.method, several=job.gpus > 1)
    way = way._replace(lora_targets=way.lora_targets + IN_ORDER)
    if way in known.layers or way not in in_order_ways(job.architecture.kinds):
        return table
    rank = rank_for(job.architecture, short_stack(job.architecture))
    return table_of(replace(known, layers={**known.layers, way: traced_layers(job.architecture, way, rank)}))


def compare(table: ModelsTable, job: TrainingSetup, tokens: int) -> dict[str, Any]:
    """A line of the table: the peak of the whole model, and by how much composed ones differ from it."""
    whole = whole_run(job, tokens).peak_bytes(tokens, job.gpus)
    found = {
        "model": job.architecture.name,
        "method": job.method,
        "settings": ", ".join(
            f"{name}={value}" for name, value in job.stack if value != getattr(Stack(), name) and name != "quantization"
        ),
        "gpus": job.gpus,
        "tokens_per_gpu": tokens,
        "whole_gib": round(whole / GIB, 3),
    }
    for name, rules in (("before_percent", ORDERS - 1), ("after_percent", RULES)):
        try:
            memory = gpu_memory(
                table if rules < ORDERS else in_order(table, job),
                job.architecture.name, job.method, job.stack, several=job.gpus > 1, rules=rules,
            )  # fmt: skip
        except Unsupported:
            found[name] = "not traced"
            continue
        composed = float(memory.peak_bytes(np.array([job.gpus]), np.array([tokens]))[0])
        found[name] = round(100 * (composed / whole - 1), 3)
    return found


def main(
    figures: Annotated[Path, typer.Option(help="folder with the figures of a version")] = MODELS / NEWEST,
) -> None:
    """Compare the jobs; write the table next to this file and the sections of the documentation."""
    console = Console()
    table = ModelsTable.read(figures)
    found = {
        section: [compare(table, *job) for job in track([*jobs(section)], section, console=console)]
        for section in SECTIONS
    }
    write(found)
    rows = [row for some in found.values() for row in some]
    console.print(pd.DataFrame(rows).to_string(index=False), soft_wrap=True)
    sys.exit(int(any(abs(row["after_percent"]) > LIMIT_PERCENT for row in rows)))


def write(found: dict[str, list[dict[str, Any]]]) -> None:
    """Write the rows of each section."""
    rows = [row for some in found.values() for row in some]
    pd.DataFrame(rows).to_csv(OUTPUT, index=False, lineterminator="\n")
    for section, some in found.items():
        write_section(VALIDATION, section, _COMMAND, markdown(some))


if __name__ == "__main__":
    typer.run(main)
