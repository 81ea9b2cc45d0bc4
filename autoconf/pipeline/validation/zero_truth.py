"""Compare composed memory under DeepSpeed's ZeRO with real tensors in real DeepSpeed processes.

The models are small, at full depth, because all memory is allocated.
"""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import pandas as pd
import typer
from rich.console import Console

from autoconf.jobs.stack import LoraTargets, Stack
from autoconf.memory.adapted import AdaptedModules
from autoconf.memory.model import gpu_memory
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile, Trainable
from autoconf.memory.store import ModelsTable, write_model
from autoconf.memory.units import Floats
from autoconf.memory.ways import head_way, layer_way
from autoconf.memory.zero_parameters import BucketSizes
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.report import VALIDATION, markdown, write_section
from autoconf.pipeline.tracing.adapted import adapted_modules
from autoconf.pipeline.tracing.extrapolate import head_moments, layer_moments
from autoconf.pipeline.tracing.ledger import rank_for, trace
from autoconf.pipeline.tracing.model_setup import Method
from autoconf.pipeline.tracing.recorder import SAMPLES
from autoconf.pipeline.tracing.trace_model import head_job, layer_job, short_stack, units
from autoconf.pipeline.validation.environments import Libraries, run

OUTPUT = Path(__file__).with_name("zero_truth.csv")
OFFLOAD_OUTPUT = Path(__file__).with_name("zero_offload_truth.csv")
LIBRARIES = Libraries("5.23.0", "0.21.2", "1.15.0", "0.50.2", deepspeed="0.19.8")
MEDIAN_PERCENT, WORST_PERCENT = 0.5, 3.0
OFFLOAD_HIGHEST_PERCENT = 20.0  # a few figures count more gradients than are there at once
JOBS = 45
_SEED = 20261130
# Models of the sample: architecture, hidden size, vocabulary, layers. The second one has a tied head.
_MODELS = (
    ("mistral-7b-v0.1", 128, 1024, 4),
    ("llama3.2-1b", 128, 4096, 8),
    ("mistral-7b-v0.1", 192, 4096, 6),
    ("qwen2.5-7b", 192, 256, 4),
)
_COMMAND, _WHAT, _WHAT_OFFLOADED = "make zero-ground-truth", "ZeRO composed", "ZeRO with offload composed"
_OFFLOADS = {"zero3": ("optimizer", "parameters", "optimizer_and_parameters")}  # ZeRO-1 and 2: the optimizer
_TOKENS = (61, 127, 251, 509)


@dataclass(frozen=True)
class ZeroCheck:
    """A small job under DeepSpeed."""

    architecture: Architecture
    method: Method
    stack: Stack
    gpus: int
    tokens: int  # tokens of each of ``SAMPLES`` samples

    @property
    def buckets(self) -> BucketSizes:
        """DeepSpeed's settings."""
        return BucketSizes.of(self.stack.zero_buckets, self.architecture.config["hidden_size"])

    def as_json(self) -> dict[str, Any]:
        """The input of ``zero_processes``."""
        fields = {"method": self.method, "gpus": self.gpus, "tokens": self.tokens, "buckets": self.buckets._asdict()}
        return {"architecture": self.architecture.model_dump(), "stack": self.stack.model_dump(), **fields}


@dataclass(frozen=True)
class ZeroResult:
    """Peaks per GPU of a check, in bytes, of the process that holds most."""

    check: ZeroCheck
    composed: float
    measured: dict[str, int]  # ``micro_batch`` and ``step``

    @property
    def peak(self) -> int:
        return max(self.measured.values())

    @property
    def difference_percent(self) -> float:
        return 100 * (self.composed / self.peak - 1)


def sample(count: int, seed: int = _SEED, gpus: int | None = None, *, offload: bool = False) -> Iterator[ZeroCheck]:
    """Draw random jobs, each setting independently, the stages in turn; with ``gpus``, all on this number."""
    chance, other_chance = np.random.default_rng(seed), np.random.default_rng(seed)
    for index in range(count):
        method = cast(Method, str(chance.choice(["full", "full", "lora"])))
        settings: dict[str, Any] = {
            "sharding": f"zero{index % 3 + 1}",
            "mixed_precision": "bf16",
            "torch_dtype": _one_of(chance, ("bfloat16", "float32")),
            "gradient_checkpointing": _one_of(chance, ("none", "reentrant", "non-reentrant")),
            "gradient_accumulation": _one_of(chance, (False, True)),
        }
        if method == "lora":
            settings |= {"lora_r": _one_of(chance, (4, 16)), "lora_targets": _one_of(chance, ("default", "all-linear"))}
        if offload:
            settings["offload"] = _one_of(other_chance, _OFFLOADS.get(settings["sharding"], ("optimizer",)))
        architecture = small(*_one_of(chance, _MODELS))
        settings["zero_buckets"] = _buckets(chance, architecture)
        drawn, tokens = int(chance.choice([2, 2, 4])), int(chance.choice(_TOKENS))
        yield ZeroCheck(architecture, method, Stack.model_validate(settings), gpus or drawn, tokens)


def _one_of(chance: np.random.Generator, values: tuple[Any, ...]) -> Any:
    return values[chance.integers(len(values))]


def small(name: str, hidden: int, vocabulary: int, layers: int) -> Architecture:
    """A model with the proportions of a large one.

    >>> small("llama3.2-1b", 128, 4096, 8).layers
    8
    """
    architecture = architectures()[name]
    config = {
        **architecture.config,
        "hidden_size": hidden, "intermediate_size": 7 * hidden // 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden // 4, "vocab_size": vocabulary, architecture.depth_key: layers,
    }  # fmt: skip
    return architecture.model_copy(update={"config": config})


def _buckets(chance: np.random.Generator, architecture: Architecture) -> dict[str, Any]:
    """As transformers sets them, or given: sizes between a matrix and the model."""
    buckets: dict[str, Any] = {"overlap_comm": _one_of(chance, (False, True))}
    square = architecture.config["hidden_size"] ** 2
    if chance.random() < 0.5:
        buckets |= {
            "reduce_bucket_size": int(square * _one_of(chance, (1, 4, 20))),
            "stage3_prefetch_bucket_size": int(square * _one_of(chance, (0, 1, 6))),
            "stage3_param_persistence_threshold": int(square * _one_of(chance, (0.01, 0.1, 0.6))),
        }
    if chance.random() < 0.7:  # the limits of ZeRO-3 in proportion to large models, and its defaults
        limit = int(square * _one_of(chance, (10, 25, 50)))
        buckets |= {"stage3_max_live_parameters": limit, "stage3_max_reuse_distance": limit}
    return buckets


class Profiles:
    """Profiles of small models, traced when they are first needed, each once."""

    def __init__(self) -> None:
        self._moments: dict[tuple[str, LayerWay | HeadWay], Floats] = {}
        self._units: dict[tuple[str, str, str], Trainable] = {}
        self._adapted: dict[str, AdaptedModules | None] = {}

    def peak_bytes(self, check: ZeroCheck) -> float:
        """The peak of a check as a version composes it."""
        memory = gpu_memory(
            self.table(check), check.architecture.name, check.method, check.stack, several=check.gpus > 1
        )
        return float(memory.peak_bytes(np.array([check.gpus]), np.array([SAMPLES * check.tokens]))[0])

    def table(self, check: ZeroCheck) -> ModelsTable:
        """A table with the profiles that a check needs."""
        layers = layer_way(check.stack, check.method, several=check.gpus > 1)
        others = ("reentrant", "non-reentrant") if layers.gradient_checkpointing == "none" else ()
        ways = [layers, *(layers._replace(gradient_checkpointing=checkpointing) for checkpointing in others)]
        head = head_way(check.stack, check.method, several=check.gpus > 1)
        found = ModelProfile(check.architecture.name, modules=self._modules(check.architecture))
        found.layers.update((way, self._traced(check.architecture, way)) for way in ways)
        found.heads[head] = self._traced(check.architecture, head)
        for method, targets in (("full", "default"), (check.method, layers.lora_targets)):
            found.units[method, targets] = self._counted(check.architecture, method, targets)
        stream = io.BytesIO()
        write_model(found, stream, {})
        return ModelsTable(stream.getvalue())

    def _traced(self, architecture: Architecture, way: LayerWay | HeadWay) -> Floats:
        key = architecture.model_dump_json(), way
        if key not in self._moments:
            short = short_stack(architecture)
            rank = rank_for(architecture, short)
            if isinstance(way, LayerWay):
                moments = layer_moments(trace(layer_job(architecture, way), short, rank), short, architecture.kinds)
            else:
                moments = head_moments(trace(head_job(architecture, way), short, rank), short, rank)
            self._moments[key] = np.array(moments)
        return self._moments[key]

    def _modules(self, architecture: Architecture) -> AdaptedModules | None:
        key = architecture.model_dump_json()
        if key not in self._adapted:
            self._adapted[key] = adapted_modules(architecture)
        return self._adapted[key]

    def _counted(self, architecture: Architecture, method: str, targets: str) -> Trainable:
        key = architecture.model_dump_json(), method, targets
        if key not in self._units:
            self._units[key] = units(architecture, cast(Method, method), cast(LoraTargets, targets))
        return self._units[key]


def compare(checks: Sequence[ZeroCheck]) -> list[ZeroResult]:
    """Compare composed with measured peaks; takes about five seconds for each check."""
    measured = run(LIBRARIES, "autoconf.pipeline.validation.zero_processes", [check.as_json() for check in checks])
    profiles = Profiles()
    return [ZeroResult(check, profiles.peak_bytes(check), found) for check, found in zip(checks, measured, strict=True)]


def row(result: ZeroResult) -> dict[str, Any]:
    """A line of the table: peaks in KiB per GPU."""
    check, config = result.check, result.check.architecture.config
    stack, buckets = check.stack, check.buckets._asdict()
    del buckets["sub_group_size"]  # it has no effect on models this small
    return {
        "architecture": check.architecture.name,
        "layers": check.architecture.layers,
        "hidden_size": config["hidden_size"],
        "vocab_size": config["vocab_size"],
        "method": check.method,
        "lora_r": stack.lora_r if check.method == "lora" else "",
        "lora_targets": stack.lora_targets if check.method == "lora" else "",
        "sharding": stack.sharding,
        **({} if stack.offload == "none" else {"offload": stack.offload}),
        "checkpointing": stack.gradient_checkpointing,
        "accumulating": stack.gradient_accumulation,
        **buckets,
        "gpus": check.gpus,
        "tokens_per_gpu": SAMPLES * check.tokens,
        "composed_kib": round(result.composed / 1024),
        "measured_kib": round(result.peak / 1024),
        "peak_in": max(result.measured, key=lambda name: result.measured[name]),
        "difference_percent": f"{result.difference_percent:.2f}",
    }


def summary(results: Sequence[ZeroResult]) -> list[dict[str, Any]]:
    """The differences of composed and measured peaks, by stage and method."""
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for result in results:
        stack = result.check.stack
        sharding = stack.sharding if stack.offload == "none" else f"{stack.sharding}, offload {stack.offload}"
        for key in ((sharding, result.check.method), ("zero, all", "")):
            groups[key].append(result.difference_percent)
    return [
        {
            "sharding": sharding,
            "method": method,
            "jobs": len(found),
            "median": f"{np.median(np.abs(found)):.2f} %",
            "lowest": f"{min(found):+.2f} %",
            "highest": f"{max(found):+.2f} %",
        }
        for (sharding, method), found in sorted(groups.items(), key=lambda group: (group[0][1] == "", group[0]))
    ]


def main(
    jobs: Annotated[int, typer.Option(help="number of random jobs", min=3)] = JOBS,
    output: Annotated[Path | None, typer.Option(help="write the comparisons to this CSV file")] = None,
    seed: Annotated[int, typer.Option(help="of the random jobs")] = _SEED,
    gpus: Annotated[int | None, typer.Option(help="of each job; by default 2 or 4", min=1, max=4)] = None,
    offload: Annotated[bool, typer.Option("--offload", help="let the host hold optimizer, parameters or both")] = False,
) -> None:
    """Run the comparisons; exit code 1 if a limit is exceeded."""
    console = Console()
    results = compare(list(sample(jobs, seed, gpus, offload=offload)))
    rows = pd.DataFrame([row(result) for result in results])
    console.print(rows.to_string(index=False), soft_wrap=True)
    console.print(pd.DataFrame(summary(results)).to_string(index=False), soft_wrap=True)
    if output is not None:
        rows.to_csv(output, index=False, lineterminator="\n")
        write_section(VALIDATION, _WHAT_OFFLOADED if offload else _WHAT, _COMMAND, markdown(summary(results)))
    differences = np.array([result.difference_percent for result in results])
    highest = OFFLOAD_HIGHEST_PERCENT if offload else WORST_PERCENT
    right = np.median(np.abs(differences)) <= MEDIAN_PERCENT and (differences >= -WORST_PERCENT).all()
    sys.exit(0 if right and (differences <= highest).all() else 1)


if __name__ == "__main__":
    typer.run(main)
