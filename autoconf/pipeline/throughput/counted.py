"""Count the work of the training code with PyTorch, for models of every family and every way of training them.

``python -m autoconf.pipeline.throughput.counted`` runs a forward and a backward pass on fake tensors, on one GPU, with
the kernels that run on CUDA, for one and two layers of each kind, from which the whole depth follows exactly, and for
two batches. It counts FLOPs with PyTorch's FLOP counter, and the bytes that operations read and write and their number.
It writes what was counted next to the closed form into ``autoconf/speed/counts.json``, and prints a table for models
and writes it into ``docs/versions/throughput.md``.
"""

from __future__ import annotations

import json
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

from autoconf.jobs.stack import Checkpointing, Kernel, Stack
from autoconf.memory.units import Floats
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.report import markdown, write_section
from autoconf.pipeline.throughput.evaluate import PAGE
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.ways import Method
from autoconf.speed.counts import CLOSED_FORM, TABLE, Counts, counts_of, way
from autoconf.speed.shapes import known_shapes
from autoconf.speed.work import Layout, dense_launches, looped_launches, traffic_of, unpacking, work_of

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
_NORMS: tuple[Kernel, ...] = ("fast_rms_layernorm", "fast_rope_embeddings", "fast_loss")
_CHECKPOINTS: tuple[Checkpointing, ...] = ("none", "reentrant")
_STACK = Stack(gradient_checkpointing="none", sharding="ddp")
_LAYOUT = Layout(SAMPLES, TOKENS, 1, steps=10**9)  # without the update
# The families that were measured with fused kernels; the counts of others with such kernels are those of Llama.
_FUSED = {"llama", "mistral", "mixtral", "granite", "granitemoe", "gpt_bigcode"}


class Counted(NamedTuple):
    """The work of a forward and a backward pass."""

    flops: float
    bytes: float
    operations: float


class Pass(NamedTuple):
    """The work of the layers, and of everything else, each as ``Counted``."""

    layers: Counted
    others: Counted


class _Traffic(TorchDispatchMode):
    """Counts operations that give new tensors, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0.0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        # Queries, such as for the device of a tensor, run nothing on the GPU.
        runs = any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(found))
        if runs and not getattr(function, "is_view", False) and "empty" not in str(function):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
            self.operations += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return found


def counted(setup: TrainingSetup, tokens: int = TOKENS) -> Pass:
    """Count the work of a job on one GPU, on fake tensors.

    Args:
        setup: the model, its method and stack.
        tokens: tokens of each of ``SAMPLES`` samples.
    """
    kinds = Counter(setup.architecture.kinds)
    once = _of_layers(setup, [*kinds], tokens)
    each = {kind: _of_layers(setup, sorted([*kinds, kind], key=[*kinds].index), tokens) - once for kind in kinds}
    layers = np.sum([count * each[kind] for kind, count in kinds.items()], axis=0)
    others = once - np.sum(list(each.values()), axis=0)
    return Pass(Counted(*layers.tolist()), Counted(*others.tolist()))


def _of_layers(setup: TrainingSetup, layers: list[str], tokens: int) -> Floats:
    with (
        first_rank(setup, layers) as rank,
        FlopCounterMode(display=False, custom_mapping={_GROUPED: _grouped_flops}) as flops,
        _Traffic() as traffic,
    ):
        rank.micro_batch(SAMPLES, tokens, reduce=True)
    return np.array([float(flops.get_total_flops()), traffic.bytes, float(traffic.operations)])


def _grouped_flops(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
    """FLOPs of a product of rows with the matrix of their expert, which PyTorch's counter does not know.

    Args:
        rows: shape (rows, in); in the backward pass of the weights (in, rows).
        weights: shape (experts, in, out), or (rows, out).
    """
    return int(2 * rows[0] * rows[1] * weights[-1])


def counts(setup: TrainingSetup) -> Counts:
    """What is counted, divided by the closed form."""
    shapes = known_shapes(setup.architecture.name)
    assert shapes is not None, setup.architecture.name
    full, stack = setup.method == "full", setup.stack
    small, large = counted(setup), counted(setup, 2 * TOKENS)
    layers, others = (_weights_and_each(part, twice) for part, twice in zip(small, large, strict=True))
    of_token, of_batch = (traffic_of(shapes, full, stack, layout) for layout in (Layout(1, 1, 1), _LAYOUT))
    unpacked = unpacking(shapes, stack)  # fake tensors of 4 bits are read, but not unpacked by an operation
    return Counts(
        operations=small.layers.operations / dense_launches(shapes, full, stack),
        outside=max(small.others.operations, 0.0),
        weights=(layers[0] + unpacked) / of_batch.weights,  # every expert has tokens
        activations=layers[1] / of_token.activations,
        head=others[0] / of_token.head,
        loss=max(others[1], 0.0) / of_token.loss,  # adapters in the first layer have less of a backward pass
    )


def _weights_and_each(part: Counted, twice: Counted) -> tuple[float, float]:
    """Bytes that do not depend on the batch, and those of each token."""
    each = (twice.bytes - part.bytes) / (SAMPLES * TOKENS)
    return part.bytes - each * SAMPLES * TOKENS, each


def families() -> dict[str, str]:
    """The model that is counted for each family: the first one of the catalog."""
    found: dict[str, str] = {}
    for name, architecture in architectures().items():
        found.setdefault(architecture.config["model_type"], name)
    return found


def setups(model: str) -> list[TrainingSetup]:
    """The ways of training a model, as ``autoconf.speed.counts.way`` names them."""
    architecture = architectures()[model]
    fused = architecture.config["model_type"] in _FUSED
    kernels: dict[Method, list[tuple[Kernel, ...]]] = {
        "full": [(), _NORMS], "lora": [(), _NORMS],
        "qlora": [(), _NORMS, ("fused_lora",), (*_NORMS, "fused_lora")],
    }  # fmt: skip
    return [
        TrainingSetup(architecture, method, _stack(method, some, checkpoints))
        for method, choices in kernels.items()
        for some in choices[: None if fused else 1]
        for checkpoints in _CHECKPOINTS
    ]


def _stack(method: Method, kernels: tuple[Kernel, ...], checkpoints: Checkpointing) -> Stack:
    return Stack(
        gradient_checkpointing=checkpoints,
        kernels=kernels,
        quantization="nf4" if method == "qlora" else "none",
        mixed_precision="bf16" if method == "qlora" else "no",
        adapter_dtype="float32",
        lora_dropout=0.05,
        sharding="ddp",
    )


def write_counts() -> None:
    """Count every family, those that were measured first, and write ``counts.json`` after each one."""
    table = {}
    for family, model in sorted(families().items(), key=lambda one: (one[0] not in _FUSED, one[0])):
        table[family] = {
            way(setup.method, setup.stack): [round(float(figure), 3) for figure in counts(setup)]
            for setup in setups(model)
        }
        print(family, model, file=sys.stderr, flush=True)
        TABLE.write_text(_lines(table), encoding="utf-8")


def _lines(table: dict[str, dict[str, list[float]]]) -> str:
    """JSON with one line for each way."""
    ways = {family: ",\n  ".join(f"{json.dumps(name)}: {of}" for name, of in table[family].items()) for family in table}
    return "{\n" + ",\n".join(f' "{family}": {{\n  {ways[family]}\n }}' for family in sorted(ways)) + "\n}\n"


def rows(models: Iterable[str]) -> list[dict[str, Any]]:
    """The table: for each model, the ratio of what is computed to what is counted."""
    found = []
    for model in models:
        shapes = known_shapes(model)
        assert shapes is not None, model
        truth = Counted(*np.add(*counted(TrainingSetup(architectures()[model], "full", _STACK))))
        row = {"model": model, "counted TFLOPs": f"{truth.flops / 1e12:.2f}"}
        flops = work_of(shapes, "full", _STACK, _LAYOUT).flops / truth.flops
        row["FLOPs: closed form / counted"] = f"{flops:.3f}"
        for name, how in (("closed form", CLOSED_FORM), ("with counts", counts_of(shapes.family, "full", _STACK))):
            work = work_of(shapes, "full", _STACK, _LAYOUT, how)
            operations = work.launches - looped_launches(shapes, _STACK, work.tokens)
            row |= {
                f"bytes: {name} / counted": f"{work.bytes / truth.bytes:.2f}",
                f"operations: {name} / counted": f"{operations / truth.operations:.2f}",
            }
        found.append(row)
        print(row, file=sys.stderr, flush=True)
    return found


def main(
    models: Annotated[
        list[str] | None, typer.Argument(help="models of the table; by default all, after counting every family")
    ] = None,
) -> None:
    """Count the work of the training code next to the closed form."""
    if models is None:
        write_counts()
    section = markdown(rows(models or MODELS))
    print(section)
    if models is None:
        write_section(PAGE, "counted work", COMMAND, section)


if __name__ == "__main__":
    typer.run(main)
