"""Compare QLoRA whose experts are quantized one by one with traces of whole jobs under transformers 4.

``python -m autoconf.pipeline.validation.quantized_experts`` makes an environment with ``LIBRARIES`` if needed, traces
each model with both kinds of checkpoints, with and without prepared norms, on one GPU and under FSDP2, and writes
``quantized_experts.csv``. Later releases of transformers 4 pick experts by data, which cannot be traced. With
``--transformers 4.48.1`` or ``--model NAME`` it prints the rows of another release or of one model only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.validation.environments import Libraries, traced
from autoconf.pipeline.validation.rank_figures import RankFigures
from autoconf.predictor import registry

LIBRARIES = Libraries("4.50.3", "0.13.2", "1.0.1", "0.43.3")
MODELS = ("olmoe-1b-7b", "mixtral-8x7b-instruct-v0.1", "mixtral-8x22b-v0.1")
OUTPUT = Path(__file__).with_suffix(".csv")
_TOKENS = (512, 4_096, 16_384)
_SETTINGS = (("reentrant", "non-reentrant"), ("none", "norms"))  # gradient_checkpointing, upcast_unquantized


def jobs(models: Sequence[str] = MODELS) -> list[tuple[str, Stack, int]]:
    """Models, stacks and numbers of GPUs."""
    usual = {
        "quantization": "nf4_experts", "lora_targets": "attention", "lora_r": 16, "adapter_dtype": "float32",
        "mixed_precision": "bf16", "sharding": "fsdp2",
    }  # fmt: skip
    return [
        (model, Stack(**usual, gradient_checkpointing=checkpointing, upcast_unquantized=upcast), gpus)  # type: ignore[arg-type]
        for model, checkpointing, upcast, gpus in product(models, *_SETTINGS, (1, 2))
    ]


def compared(table: ModelsTable, models: Sequence[str] = MODELS, libraries: Libraries = LIBRARIES) -> pd.DataFrame:
    """Each job with its tokens, its composed and its traced peak in GiB, and the difference in percent."""
    known, asked = architectures(), jobs(models)
    # bitsandbytes quantizes whatever is linear there, so the traced stack is plain nf4.
    given = [
        {
            "architecture": known[model].model_dump(), "method": "qlora", "gpus": gpus,
            "stack": stack.model_copy(update={"quantization": "nf4"}).model_dump(),
        }
        for model, stack, gpus in asked
    ]  # fmt: skip
    rows = []
    for (model, stack, gpus), figures in zip(asked, traced(libraries, given), strict=True):
        if "problem" in figures:
            raise RuntimeError(f"{model} on {gpus}: {figures['problem']}")
        memory, whole = gpu_memory(table, model, "qlora", stack, several=gpus > 1), RankFigures(**figures)
        for tokens in _TOKENS:
            composed = float(memory.peak_bytes(np.array([gpus]), np.array([tokens]))[0]) / GIB
            peak = whole.peak_bytes(tokens, gpus) / GIB
            settings = stack.gradient_checkpointing, stack.upcast_unquantized
            rows.append((model, *settings, gpus, tokens, composed, peak, 100 * (composed / peak - 1)))
    columns = "model gradient_checkpointing upcast_unquantized gpus tokens composed_gib traced_gib difference_percent"
    return pd.DataFrame(rows, columns=columns.split()).round(3)


def main(
    model: Annotated[str | None, typer.Option(help="one model alone, without a table")] = None,
    transformers: Annotated[str | None, typer.Option(help="another release, without a table")] = None,
) -> None:
    """Write the table; print the median and the range."""
    libraries = replace(LIBRARIES, transformers=transformers or LIBRARIES.transformers)
    models = MODELS if model is None else (model,)
    table = compared(registry.load(registry.DEFAULT).memory.table, models, libraries)  # type: ignore[union-attr]
    if model is None and transformers is None:
        table.to_csv(OUTPUT, index=False, lineterminator="\n")
    else:
        print(table.to_string(index=False))
    for name, found in table.groupby("model", sort=False).difference_percent:
        print(f"{name}: {len(found)} jobs, median {found.median():+.2f} %, {found.min():+.2f} to {found.max():+.2f} %")


if __name__ == "__main__":
    typer.run(main)
