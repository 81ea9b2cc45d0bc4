"""Check the orderings that a version guarantees, over its whole domain, when it is made.

Needed memory is compared on memory profiles, not on samples of answers: a job fits if usable memory exceeds its needed
memory, and the probability of fitting never falls as the difference grows (a monotone constraint). So answers have the
same orderings as needed memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from autoconf.errors import AutoConfError
from autoconf.jobs.presets import SETTINGS, presets, training_stack
from autoconf.jobs.stack import Stack
from autoconf.memory.gpu_memory import GpuMemory
from autoconf.memory.model import StackMemory
from autoconf.memory.reserve import Reserve
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import GIB, Floats, Unsupported
from autoconf.pipeline.release.orderings_of_profiles import (
    Violations,
    checkpointing,
    chunked,
    never_negative,
    optimizers,
)
from autoconf.predictor.predictor import Predictor

_COUNTS = (1, 2, 3, 4, 8, 16, 64, 512)
# If the head is trained, Liger copies its gradients for each chunk; TRL always copies its weights. The size of these
# copies does not grow with the tokens.
_CHUNKED_FROM = [
    ("LoRA and QLoRA", False, "chunked", 4_096),
    ("full fine-tuning", True, "chunked", 32_768),
    ("LoRA and QLoRA", False, "chunked_nll", 16_384),
    ("full fine-tuning", True, "chunked_nll", 32_768),
]
# Sharding a smaller model saves less than NCCL's buffers take on a second GPU, up to 4 GiB.
_SHARED_FROM = 4_000_000_000
_LARGE = f"; models of at least {_SHARED_FROM:,} parameters"
# Likewise of FSDP, which keeps embeddings and head gathered: of 256,000 tokens they are a quarter of such a model.
_SECOND_GPU_FROM = 8_000_000_000
# Offload, by sharding: what needs more, what needs less, and on how many GPUs. ZeRO-1 and 2 offload through a buffer
# for the largest parameter, which the shards of many GPUs do not outweigh.
_OFFLOADS = (
    ("zero1", "none", "optimizer", (2, 3, 4, 8)),
    ("zero2", "none", "optimizer", (2, 3, 4, 8)),
    ("zero3", "none", "optimizer", _COUNTS[1:]),
    ("zero3", "none", "parameters", _COUNTS[1:]),
    ("zero3", "optimizer", "optimizer_and_parameters", _COUNTS[1:]),
    ("fsdp1", "none", "optimizer_and_parameters", _COUNTS[1:]),
    ("fsdp2", "none", "optimizer_and_parameters", _COUNTS[1:]),
)
_BOTH = "embeddings_and_head"
_TRAINED = (("none", "embeddings"), ("none", "head"), ("embeddings", _BOTH), ("head", _BOTH))
_BASES = (("nf4_single", "nf4"), ("int8", "nf4_single"), ("gptq", "nf4"), ("gptq", "awq"), ("awq", "nf4"))


class Checker:
    """Compares needed memory over all sizes of a version's domain."""

    def __init__(self, predictor: Predictor) -> None:
        assert predictor.card.reserve is not None and isinstance(predictor.memory, StackMemory)
        self.predictor = predictor
        self.reserve: Reserve = predictor.card.reserve
        self.table: ModelsTable = predictor.memory.table
        self.edges_gib = [_edge_gib(predictor, sharded) for sharded in (0.0, 1.0)]
        domain = predictor.domain
        self.usable_gib = sorted({gpu.usable_gib for gpu in domain.gpus.values()})
        self.tokens = np.unique(np.geomspace(1, domain.max_tokens_per_sample * domain.max_batch_size, 80).round())

    def memory(self, model: str, method: str, stack: Stack, *, several: bool) -> GpuMemory | None:
        """Memory of a GPU of a job; ``None`` if there is no profile for it."""
        assert isinstance(self.predictor.memory, StackMemory)
        try:
            return self.predictor.memory.gpu_job(model, method, stack, several=several).memory
        except Unsupported:
            return None

    def exceeds(self, one: GpuMemory, other: GpuMemory, counts: tuple[int, ...], tokens: Floats | None = None) -> bool:
        """Whether ``one`` is refused anywhere where ``other`` fits."""
        tokens = self.tokens if tokens is None else tokens
        for count in counts:
            gpus = np.full(len(tokens), count)
            one_gib, other_gib = (memory.needed_bytes(gpus, tokens, self.reserve) / GIB for memory in (one, other))
            if self.contradicts((one_gib, count), (other_gib, count)):
                return True
        return False

    def contradicts(self, one: tuple[Floats, int], other: tuple[Floats, int]) -> bool:
        """Whether on some GPU type ``one`` is refused although ``other`` fits; each is a need and a number of GPUs."""
        limits = zip(self._limits_gib(one[1]), self._limits_gib(other[1]), strict=True)
        return any(((other[0] <= fitting) & (one[0] > refusing)).any() for refusing, fitting in limits)

    def _limits_gib(self, gpus: int) -> Floats:
        """The most that may be needed on each GPU type."""
        usable = np.array(self.usable_gib)
        return self.predictor.for_pytorch_gib(usable, np.full(len(usable), gpus)) - self.edges_gib[gpus > 1]


class _Promise(NamedTuple):
    """What never needs less than what, for which jobs, and what breaks it: a sentence, or nothing, for each pair."""

    never_needs_less: str
    holds_for: str
    violations: Violations


def check(predictor: Predictor) -> list[dict[str, Any]]:
    """Check the orderings of a version.

    Returns:
        Rows with ``never needs less`` (the ordering), ``holds for`` and ``pairs compared`` (of profiles).

    Raises:
        AutoConfError: an ordering does not hold, or the predictor is not a step in headroom.
    """
    _check_step(predictor)
    console = Console(stderr=True)
    rows = []
    checker = Checker(predictor)
    for name, holds_for, violations in itertools.chain(_promises(checker), promises_of_settings(checker)):
        found = list(track(violations, name, transient=True, console=console, disable=not console.is_terminal))
        broken = [what for what in found if what]
        if broken:
            raise AutoConfError(
                f"{name}, {holds_for}: broken by {len(broken)} of {len(found)}: {'; '.join(broken[:5])}"
            )
        rows.append({"never needs less": name, "holds for": holds_for, "pairs compared": len(found)})
    return rows


def _promises(checker: Checker) -> Iterator[_Promise]:
    per_token = ("per_token", "per_token_per_rank")
    per_rank = ("constant_per_rank", "per_token_per_rank", "layer_gradients", "newest_gradient", "finished_gradients")
    yield _Promise(
        "more tokens or a larger batch, at as many GPUs, than fewer",
        "every job",
        never_negative(checker.table, per_token),
    )
    yield _Promise(
        "fewer GPUs, from two on, than more, at the same batch",
        "every job",
        never_negative(checker.table, (*per_token, "finished_gradients")),
    )
    yield _Promise(
        "one GPU than two, at the same batch",
        f"full and LoRA, the presets with FSDP that mix no precision{_large(checker)}",
        _second_gpu(checker),
    )
    yield _Promise("full fine-tuning than LoRA", "the stack reference", _lora(checker))
    # ZeRO-3 uses a layer once more. Checkpoints keep the inputs of layers before the first one with adapters.
    but = " but those under ZeRO-3 and with lora_layers" * ("zero3" in checker.predictor.domain.sharding)
    yield _Promise("no gradient checkpointing than either way of it", "every job" + but, checkpointing(checker.table))
    yield _Promise(
        "adamw_torch than adamw_torch_fused", "every job", optimizers(checker.table, "adamw_torch_fused", (2, 4))
    )
    yield _Promise(
        "32-bit AdamW states than 8-bit ones",
        "trainable parameters in float32",
        optimizers(checker.table, "adamw_bnb_8bit", (4,)),
    )
    yield _Promise(
        "a higher rank of adapters than a lower one",
        "optimizers other than 8-bit ones",
        never_negative(checker.table, per_rank),
    )
    for what, trains, loss, tokens in _CHUNKED_FROM:
        yield _Promise(
            f"all logits than chunks of them, from {tokens:,} tokens per GPU on",
            f"{what}; loss {loss}",
            chunked(checker.table, trains, loss, tokens),
        )


def promises_of_settings(checker: Checker) -> Iterator[_Promise]:
    """Orderings of settings that versions up to 2.0.0 do not know; a pair without a profile is not compared."""
    domain = checker.predictor.domain
    if "zero3" in domain.sharding:
        mixed = Stack(mixed_precision="bf16")
        one, two, three = (mixed.model_copy(update={"sharding": stage}) for stage in ("zero1", "zero2", "zero3"))
        yield _Promise(
            "ZeRO-1 than ZeRO-2",
            f"gradient accumulation{_LARGE}",
            _settings(checker, one, two, domain.methods, _COUNTS[1:]),
        )
        # ZeRO-3 gathers up to 2 GB of parameters, and its linear layers keep inputs that adapters do not need.
        yield _Promise(
            "ZeRO-2 than ZeRO-3",
            f"full fine-tuning with gradient accumulation on at least four GPUs{_LARGE}",
            _settings(checker, two, three, ["full"], _COUNTS[3:]),
        )
    if "norms" in domain.upcast_unquantized:
        # A base as loaded may need more than one with float32 norms if it has LayerNorm: autocast makes copies for it.
        everything, norms = (
            Stack(quantization="nf4", mixed_precision="bf16", upcast_unquantized=upcast) for upcast in ("all", "norms")
        )
        yield _Promise(
            "upcast_unquantized all than norms",
            "QLoRA on one GPU",
            _settings(checker, everything, norms, ["qlora"], (1,), least=0),
        )
    yield from _promises_of_strategies(checker)
    yield from _promises_of_bases(checker)
    yield from _promises_of_adapters(checker)
    for sharding, before, offload, counts in _OFFLOADS if len(domain.offload) > 1 else ():
        more, less = (
            Stack(sharding=sharding, mixed_precision="bf16", offload=of)  # type: ignore[arg-type]
            for of in (before, offload)
        )
        buffered = sharding in ("zero1", "zero2")
        yield _Promise(
            f"offload {before} than {offload}",
            f"{sharding} on {counts[0]} to {counts[-1]} GPUs{_LARGE if buffered else ''}",
            _settings(checker, more, less, domain.methods, counts, least=_SHARED_FROM if buffered else 0),
        )


def _promises_of_strategies(checker: Checker) -> Iterator[_Promise]:
    """Orderings of FSDP's strategies; what is kept whole is never less than what is gathered for a moment."""
    for version in ("fsdp1", "fsdp2") if checker.predictor.knows_host else ():
        full, kept = (Stack(sharding=version, fsdp_strategy=strategy) for strategy in ("full_shard", "shard_grad_op"))
        yield _Promise(
            f"{version}'s SHARD_GRAD_OP than FULL_SHARD",
            f"any number of GPUs; models of at least {_SECOND_GPU_FROM:,} parameters",
            # FSDP2 gathers embeddings again for the backward pass, unless it keeps them.
            _settings(checker, kept, full, checker.predictor.domain.methods, _COUNTS[1:], _SECOND_GPU_FROM),
        )
        yield _Promise(
            f"ddp than {version}'s SHARD_GRAD_OP",
            f"full fine-tuning with gradient accumulation; models of at least {_SECOND_GPU_FROM:,} parameters",
            _settings(checker, Stack(sharding="ddp"), kept, ["full"], _COUNTS[1:], _SECOND_GPU_FROM),
        )


def _promises_of_bases(checker: Checker) -> Iterator[_Promise]:
    """Orderings of quantized bases, and of the micro-batches at which gradients are reduced."""
    domain = checker.predictor.domain
    for more_bits, fewer in _BASES if "int8" in domain.quantization else ():
        one, two = (
            Stack(quantization=kind, sharding="ddp", mixed_precision="bf16")  # type: ignore[arg-type]
            for kind in (more_bits, fewer)
        )
        for several in (False, True):
            yield _Promise(
                f"quantization {more_bits} than {fewer}",
                f"QLoRA {'under ddp' if several else 'on one GPU'}",
                _settings(checker, one, two, ["qlora"], _COUNTS[1:] if several else (1,), least=0),
            )
    for sharding in ("fsdp1", "fsdp2") if "every" in domain.gradient_sync else ():
        # With mixed precision the reduced gradients are float32, which two GPUs do not make smaller.
        last, every = (Stack(sharding=sharding, gradient_sync=sync) for sync in ("last", "every"))
        yield _Promise(
            "gradient_sync last than every",
            f"gradient accumulation without mixed precision under {sharding}",
            _settings(checker, last, every, domain.methods, _COUNTS[1:], least=0),
        )


def _promises_of_adapters(checker: Checker) -> Iterator[_Promise]:
    """Orderings of layers with adapters, of their checkpoints, and of modules that are trained beside these."""
    for of_layers in ("none", "non-reentrant") if checker.predictor.knows_host else ():
        one, two = (Stack(gradient_checkpointing=of_layers, lora_layers=layers) for layers in ((), (1, 3)))
        yield _Promise(
            "adapters on all layers than on two of them",
            f"LoRA and QLoRA under fsdp2; gradient_checkpointing {of_layers}",
            _settings(checker, one, two, ["lora", "qlora"], _COUNTS[1:], least=0),
        )
    offloads = "offloaded" in checker.predictor.domain.gradient_checkpointing
    for several in (False, True) if offloads else ():
        on_gpu, on_host = (Stack(gradient_checkpointing=where) for where in ("non-reentrant", "offloaded"))
        yield _Promise(
            "gradient_checkpointing non-reentrant than offloaded",
            f"LoRA and QLoRA {'under fsdp2' if several else 'on one GPU'}; layers of one kind",
            _settings(checker, on_gpu, on_host, ["lora", "qlora"], _COUNTS[1:] if several else (1,), least=0),
        )
    for less, more in _TRAINED if len(checker.predictor.domain.trained_modules) > 1 else ():
        one, two = (Stack(trained_modules=which) for which in (more, less))  # type: ignore[arg-type]
        pairs = _settings(checker, one, two, ["lora", "qlora"], _COUNTS[1:], least=0)
        yield _Promise(f"trained_modules {more} than {less}", "LoRA and QLoRA under fsdp2", pairs)


def _settings(
    checker: Checker,
    more: Stack,
    less: Stack,
    methods: Sequence[str],
    counts: tuple[int, ...],
    least: int = _SHARED_FROM,
) -> Violations:
    """Compare two stacks for all models of at least a number of parameters: smaller ones are mostly vocabulary."""
    for model, method in itertools.product(checker.table.models, methods):
        full = checker.table.trainable(model, "full", "default")
        if full is None or full.units.trainable < least:
            continue
        of_method: dict[str, Any] = {"quantization": "nf4"} if method == "qlora" else {}
        stacks = (s if s.quantization != "none" else s.model_copy(update=of_method) for s in (less, more))
        one, other = (checker.memory(model, method, stack, several=counts[0] > 1) for stack in stacks)
        if one is not None and other is not None:
            yield f"{model}, {method}" if checker.exceeds(one, other, counts) else ""


def _check_step(predictor: Predictor) -> None:
    """Refuse a predictor whose decisions are not a single step in headroom."""
    headroom = np.linspace(-3, 3, 6001)
    for sharded in (0.0, 1.0):
        fits = predictor.answers(pd.DataFrame({"headroom_gib": headroom, "sharded": sharded}))
        if fits[0] or not fits[-1] or (np.diff(fits.astype(int)) < 0).any():
            raise AutoConfError(f"the predictor is not a step in headroom between -3 and 3 GiB (sharded: {sharded:g})")


def _presets(checker: Checker) -> Iterator[tuple[str, str, Stack]]:
    for model, method, preset, accumulating in itertools.product(
        checker.table.models, checker.predictor.domain.methods, presets(), (False, True)
    ):
        yield model, method, training_stack(method, accumulating, preset, *[None] * len(SETTINGS))


def _large(checker: Checker) -> str:
    return f"; models of at least {_SECOND_GPU_FROM:,} parameters" if checker.predictor.card.outside_pytorch else ""


def _second_gpu(checker: Checker) -> Violations:
    for model, method, stack in _presets(checker):
        if stack.sharding == "ddp" or stack.mixed_precision == "bf16" or method == "qlora":
            continue
        full = checker.table.trainable(model, "full", "default")
        if checker.predictor.card.outside_pytorch and full is not None and full.units.trainable < _SECOND_GPU_FROM:
            continue
        one, several = (checker.memory(model, method, stack, several=of) for of in (False, True))
        if one is None or several is None:
            continue
        tokens = checker.tokens
        on_one = one.needed_bytes(np.ones(len(tokens), np.int64), tokens, checker.reserve) / GIB
        on_two = several.needed_bytes(np.full(len(tokens), 2), tokens / 2, checker.reserve) / GIB
        yield f"{model}, {method}" if checker.contradicts((on_two, 2), (on_one, 1)) else ""


def _edge_gib(predictor: Predictor, sharded: float) -> float:
    headroom = np.linspace(-3, 3, 6001)
    return float(headroom[predictor.answers(pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})).argmax()])


def _lora(checker: Checker) -> Violations:
    for model, accumulating in itertools.product(checker.table.models, (False, True)):
        for several in (False, True):
            lora, full = (
                checker.memory(model, method, Stack(gradient_accumulation=accumulating), several=several)
                for method in ("lora", "full")
            )
            if lora is not None and full is not None:
                yield model if checker.exceeds(lora, full, _COUNTS[1:] if several else (1,)) else ""
