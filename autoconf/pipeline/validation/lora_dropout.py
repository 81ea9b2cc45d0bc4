"""Compare adapters in bfloat16 with dropout, which are counted as those in float32, with traces of PEFT's own.

``python -m autoconf.pipeline.validation.lora_dropout`` prints by how much the composed peak on one GPU is above the
traced one, over models of different families and three numbers of tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.memory.ways import layer_way
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.ledger import rank_for
from autoconf.pipeline.tracing.trace_model import short_stack, traced_layers
from autoconf.pipeline.validation.named_modules import peak, table_of
from autoconf.predictor import registry

MODELS = (
    "mistral-7b-v0.1", "granite-3.1-2b", "granite-20b-v2", "qwen2.5-7b", "phi-3-mini", "opt-1.3b", "pythia-6.9b",
    "mixtral-8x7b-instruct-v0.1",
)  # fmt: skip
_TOKENS = (512, 8_192, 32_768)


def differences(table: ModelsTable, model: str, stack: Stack) -> list[float]:
    """How much the composed peak is above the traced one, in percent, for each number of tokens."""
    way, architecture, known = layer_way(stack, "lora", several=False), architectures()[model], table.figures(model)
    in_bfloat16 = way._replace(adapter_dtype="bfloat16")
    own = traced_layers(architecture, in_bfloat16, rank_for(architecture, short_stack(architecture)))
    traced = table_of(replace(known, layers={**known.layers, way: own}))
    pairs = [(peak(table, model, stack, tokens), peak(traced, model, stack, tokens)) for tokens in _TOKENS]
    return [100 * (composed / measured - 1) for composed, measured in pairs]


def main() -> None:
    """Print the median and the range for each kind of checkpointing."""
    table = registry.load(registry.DEFAULT).memory.table  # type: ignore[union-attr]
    for checkpointing in ("non-reentrant", "none"):
        settings = {"lora_targets": "attention", "lora_r": 16, "gradient_checkpointing": checkpointing}
        stack = Stack(lora_dropout=0.1, **settings)  # type: ignore[arg-type]
        found = [difference for model in MODELS for difference in differences(table, model, stack)]
        print(
            f"checkpointing {checkpointing}: {len(found)} jobs, median {statistics.median(found):+.2f} %, "
            f"from {min(found):+.2f} to {max(found):+.2f} %"
        )


if __name__ == "__main__":
    main()
