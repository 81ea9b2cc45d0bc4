"""Compare the work in closed form with what PyTorch counts on the training code, for models of every family.

``python -m autoconf.pipeline.throughput.counted`` runs a forward and a backward pass on fake tensors, on one GPU, with
the kernels that run on CUDA, for one and two layers of each kind, from which the whole depth follows exactly. It counts
FLOPs with PyTorch's FLOP counter, and the bytes that operations read and write and their number. It prints the table
and writes it into ``docs/versions/throughput.md``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.report import markdown, write_section
from autoconf.pipeline.throughput.evaluate import PAGE
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.speed.shapes import known_shapes
from autoconf.speed.work import Layout, work_of

COMMAND = "python -m autoconf.pipeline.throughput.counted"
# Models of every family, all kinds of mixtures of experts, and Mamba.
MODELS = (
    "llama-7b", "llama3.2-3b", "mistral-7b-v0.1", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-8b", "gemma-2-9b", "gemma-3-4b",
    "granite-8b-code-base", "granite-3.1-2b", "granite-13b-v2", "santacoder-1.1b", "starcoder2-7b", "phi-2",
    "phi-3-mini", "phi-4-mini", "opt-1.3b", "pythia-1.4b", "olmo-2-7b", "smollm3-3b", "falcon3-7b",
    "mixtral-8x7b-instruct-v0.1", "gpt-oss-20b", "granite-3.1-1b-a400m", "granite-3.1-3b-a800m-instruct", "olmoe-1b-7b",
    "qwen3-30b-a3b", "deepseek-v2-lite", "granite-4.0-h-micro", "granite-4.0-h-tiny",
)  # fmt: skip
SAMPLES, TOKENS = 2, 512
_GROUPED = torch.ops.aten._grouped_mm  # noqa: SLF001 - the name of a published operator
_STACK = Stack(gradient_checkpointing="none", sharding="ddp")


class Counted(NamedTuple):
    """The work of a forward and a backward pass."""

    flops: float
    bytes: float
    operations: float


class _Traffic(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0.0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
        if tensors and not getattr(function, "is_view", False) and "empty" not in str(function):
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


def counted(model: str) -> Counted:
    """Count the work of a model on fake tensors."""
    kinds = Counter(architectures()[model].kinds)
    once = _of_layers(model, [*kinds])
    total = np.array(once)
    for kind, count in kinds.items():
        if count > 1:
            total += (count - 1) * (np.array(_of_layers(model, [*kinds, kind])) - once)
    return Counted(*total.tolist())


def _of_layers(model: str, layers: list[str]) -> Counted:
    setup = TrainingSetup(architectures()[model], "full", _STACK)
    with (
        first_rank(setup, layers) as rank,
        FlopCounterMode(display=False, custom_mapping={_GROUPED: _grouped_flops}) as flops,
        _Traffic() as traffic,
    ):
        rank.micro_batch(SAMPLES, TOKENS, reduce=True)
    return Counted(float(flops.get_total_flops()), traffic.bytes, float(traffic.operations))


def _grouped_flops(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
    """FLOPs of a product of rows with the matrix of their expert, which PyTorch's counter does not know.

    Args:
        rows: shape (rows, in); in the backward pass of the weights (in, rows).
        weights: shape (experts, in, out), or (rows, out).
    """
    return int(2 * rows[0] * rows[1] * weights[-1])


def computed(model: str) -> Counted:
    """The same work in closed form; FlashAttention has no products that PyTorch counts."""
    shapes = known_shapes(model)
    assert shapes is not None, model
    work = work_of(shapes, "full", _STACK, Layout(SAMPLES, TOKENS, 1, steps=10**9))  # without the update
    return Counted(work.flops, work.bytes, work.launches)


def rows(models: Iterable[str]) -> list[dict[str, Any]]:
    """The table: for each model, the ratio of the closed form to what was counted."""
    found = []
    for model in models:
        formula, truth = computed(model), counted(model)
        found.append(
            {
                "model": model,
                "counted TFLOPs": f"{truth.flops / 1e12:.2f}",
                **{
                    f"{name}: formula / counted": f"{getattr(formula, name) / getattr(truth, name):.3f}"
                    for name in Counted._fields
                },
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    return found


def main(
    models: Annotated[list[str] | None, typer.Argument(help="models; by default those of the table")] = None,
) -> None:
    """Compare the work in closed form with what PyTorch counts."""
    section = markdown(rows(models or MODELS))
    print(section)
    if models is None:
        write_section(PAGE, "counted work", COMMAND, section)


if __name__ == "__main__":
    typer.run(main)
