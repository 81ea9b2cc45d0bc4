"""Compare jobs that name modules for adapters with traces of PEFT's adapters on exactly these modules.

``python -m autoconf.pipeline.validation.named_modules [JOBS]`` draws lists of modules for models of different families,
and prints by how much the composed peak on one GPU is above the traced one.
"""

from __future__ import annotations

import io
import random
import statistics
import sys
from dataclasses import replace

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.model import StackMemory
from autoconf.memory.profile_of_job import named_modules
from autoconf.memory.store import ModelsTable, write_model
from autoconf.memory.ways import layer_way
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.ledger import rank_for
from autoconf.pipeline.tracing.trace_model import short_stack, traced_layers
from autoconf.predictor import registry

MODELS = (
    "mistral-7b-v0.1", "granite-3.1-2b", "granite-20b-v2", "qwen2.5-7b", "gemma-2-9b", "phi-3-mini", "olmo-2-7b",
    "opt-1.3b", "pythia-6.9b", "granite-4.0-h-1b", "mixtral-8x7b-instruct-v0.1",
)  # fmt: skip
_TOKENS, _RANKS = (512, 2_048, 8_192, 32_768), (8, 64)
_STACKS = (
    Stack(),
    Stack(mixed_precision="bf16", adapter_dtype="float32"),
    Stack(mixed_precision="bf16", adapter_dtype="float32", lora_dropout=0.05),
)


def peaks(table: ModelsTable, model: str, stack: Stack, tokens: int) -> tuple[float, float]:
    """The peak of a job with LoRA on named modules on one GPU, composed and with these modules' own trace.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack, with a list of modules.
        tokens: tokens of a micro-batch.

    Returns:
        Bytes, composed and traced.
    """
    named, way = named_modules(table, model, "lora", stack), layer_way(stack, "lora", several=False)
    assert named is not None
    known, architecture = table.figures(model), architectures()[model]
    rank = rank_for(architecture, short_stack(architecture))
    of_names = way._replace(lora_targets=tuple(stack.lora_targets))  # type: ignore[arg-type]
    group = way._replace(lora_targets=named.group)
    traced = replace(
        known,
        layers={**known.layers, group: traced_layers(architecture, of_names, rank)},
        units={**known.units, ("lora", named.group): named.trainable(known.units["lora", named.group])},
    )
    as_group = stack.model_copy(update={"lora_targets": named.group})
    return peak(table, model, stack, tokens), peak(table_of(traced), model, as_group, tokens)


def table_of(profile: object) -> ModelsTable:
    """A table of one model."""
    content = io.BytesIO()
    write_model(profile, content, {})  # type: ignore[arg-type]
    return ModelsTable(content.getvalue())


def peak(table: ModelsTable, model: str, stack: Stack, tokens: int) -> float:
    """The composed peak of a job with LoRA on one GPU, in bytes."""
    memory = StackMemory(table)
    row = memory.row(model, "lora", stack)
    return float(memory.peak_bytes(np.array([row]), np.array([1]), np.array([tokens]))[0])


def drawn(table: ModelsTable, count: int, seed: int = 25) -> list[tuple[str, Stack, int]]:
    """Random jobs: a model, a stack with a list of modules other than a group, and the tokens of a micro-batch."""
    chance = random.Random(seed)
    jobs: list[tuple[str, Stack, int]] = []
    while len(jobs) < count:
        model = MODELS[len(jobs) % len(MODELS)]
        modules = table.modules(model)
        assert modules is not None
        names = tuple(path for path in modules.paths if chance.random() < chance.choice((0.3, 0.6, 0.9)))
        if not names or modules.named(model, names).is_group:
            names = (chance.choice(modules.paths),)
        settings = {
            "lora_targets": names,
            "lora_r": chance.choice(_RANKS),
            "gradient_checkpointing": ("none", "non-reentrant")[len(jobs) // len(MODELS) % 2],
        }
        jobs.append((model, chance.choice(_STACKS).model_copy(update=settings), chance.choice(_TOKENS)))
    return jobs


def main() -> None:
    """Print each job with its difference, and the median and worst by checkpointing."""
    table = registry.load(registry.DEFAULT).memory.table  # type: ignore[union-attr]
    above: dict[str, list[float]] = {}
    for model, stack, tokens in drawn(table, int(sys.argv[1]) if len(sys.argv) > 1 else 66):
        composed, traced = peaks(table, model, stack, tokens)
        difference = 100 * (composed / traced - 1)
        above.setdefault(stack.gradient_checkpointing, []).append(difference)
        print(
            f"{difference:+6.2f} %  {model}, {','.join(stack.lora_targets)}, rank {stack.lora_r}, {tokens} tokens, "
            f"{stack.gradient_checkpointing}, {stack.adapter_dtype}, dropout {stack.lora_dropout:g}"
        )
    for checkpointing, values in above.items():
        print(
            f"checkpointing {checkpointing}: {len(values)} jobs, median {statistics.median(values):+.2f} %, "
            f"from {min(values):+.2f} to {max(values):+.2f} %"
        )


if __name__ == "__main__":
    main()
