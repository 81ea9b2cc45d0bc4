"""Orderings that a version promises: those that physics gives, each checked over the whole domain when it is made.

What a job needs is compared on its figures, not on samples of answers: a job fits where usable memory exceeds what it
needs, and the predictor's probability of fitting cannot fall as the difference grows (a monotone constraint), so that
answers are ordered wherever needs are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import track

from autoconf.any_stack import gpu_figures
from autoconf.errors import AutoConfError
from autoconf.figures import HeadWay, LayerWay, ModelsTable, Point, StackMoment
from autoconf.memory import GIB, Floats, Outside, Reserve
from autoconf.predictors import Predictor
from autoconf.presets import SETTINGS, presets, training_stack
from autoconf.sharding import Held
from autoconf.stack import Stack, optimizer_bytes

_COUNTS = (1, 2, 3, 4, 8, 16, 64, 512)
_CHUNKED_FROM = 4096  # tokens of a GPU
_TOLERANCE = 1e-6  # figures are kept with seven digits


class Checker:
    """Compares what jobs need over all sizes of a version's domain."""

    def __init__(self, predictor: Predictor) -> None:
        assert predictor.card.reserve is not None
        self.predictor = predictor
        self.reserve: Reserve = predictor.card.reserve
        self.table: ModelsTable = predictor.memory.table
        domain = predictor.domain
        self.tokens = np.unique(np.geomspace(1, domain.max_tokens_per_sample * domain.max_batch_size, 80).round())

    def figures(self, model: str, method: str, stack: Stack, *, several: bool) -> Held | Outside:
        return gpu_figures(self.table, model, method, stack, several=several)

    def exceeds(self, one: Held, other: Held, counts: tuple[int, ...], tokens: Floats | None = None) -> bool:
        """Whether one needs more than the other anywhere."""
        tokens = self.tokens if tokens is None else tokens
        for count in counts:
            gpus = np.full(len(tokens), count)
            needs = one.needed_bytes(gpus, tokens, self.reserve), other.needed_bytes(gpus, tokens, self.reserve)
            if (needs[0] > needs[1] * (1 + _TOLERANCE) + 1e4).any():
                return True
        return False


def check(predictor: Predictor) -> list[dict[str, Any]]:
    """Check what a version promises.

    Returns:
        Rows with ``ordering`` (what never needs more GPUs, or never turns "no" into "yes"), ``holds for`` and ``pairs`` (of figures
        compared).

    Raises:
        AutoConfError: an ordering does not hold, or the predictor is not a step in headroom.
    """
    _check_step(predictor)
    checker = Checker(predictor)
    rows = []
    for name, holds_for, violations in (
        ("more tokens or a larger batch, at as many GPUs, than fewer", "every job", _tokens(checker)),
        ("fewer GPUs, from two on, than more, at the same batch", "FSDP", _more_gpus(checker)),
        ("one GPU than two, at the same batch", "full and LoRA, the presets with FSDP that mix no precision", _second_gpu(checker)),
        ("full fine-tuning than LoRA", "the stack reference", _lora(checker)),
        ("no gradient checkpointing than either way of it", "every job", _checkpointing(checker)),
        ("adamw_torch than adamw_torch_fused", "every job", _optimizers(checker, "adamw_torch_fused", (2, 4))),
        ("32-bit AdamW states than 8-bit ones", "what trains in float32", _optimizers(checker, "adamw_bnb_8bit", (4,))),
        ("a higher rank of adapters than a lower one", "optimizers other than 8-bit ones", _ranks(checker)),
        (
            f"all logits than Liger's chunks of them, from {_CHUNKED_FROM:,} tokens per GPU on",
            "every job",
            _chunked(checker),
        ),
    ):
        found = list(track(violations, description=name, transient=True))
        broken = [what for what in found if what]
        if broken:
            raise AutoConfError(f"{name}, {holds_for}: broken by {len(broken)} of {len(found)}: {'; '.join(broken[:5])}")
        rows.append({"never needs less": name, "holds for": holds_for, "pairs compared": len(found)})
    return rows


def _check_step(predictor: Predictor) -> None:
    """Refuse a predictor that does not say "fits" from some headroom on, and nowhere before."""
    headroom = np.linspace(-3, 3, 6001)
    for sharded in (0.0, 1.0):
        fits = predictor.answers(pd.DataFrame({"headroom_gib": headroom, "sharded": sharded}))
        if fits[0] or not fits[-1] or (np.diff(fits.astype(int)) < 0).any():
            raise AutoConfError(f"the predictor is not a step in headroom between -3 and 3 GiB (sharded: {sharded:g})")


Violations = Iterator[str]  # empty text for a pair that is ordered


def _tokens(checker: Checker) -> Violations:
    """No moment of any way shrinks as tokens or the rank grow, so none of their sums does."""
    slope = [StackMoment._fields.index(name) for name in ("per_token", "per_token_per_rank")]
    for model, ways in _all_ways(checker.table):
        for way in ways:
            moments = checker.table.moments(model, way)
            shrinks = moments is not None and (moments[:, slope] < 0).any()
            yield f"{model}, {way}" if shrinks else ""


def _all_ways(table: ModelsTable) -> Iterator[tuple[str, list[LayerWay | HeadWay]]]:
    for model in table.models:
        figures = table.figures(model)
        yield model, [*figures.layers, *figures.heads]


def _presets(checker: Checker) -> Iterator[tuple[str, str, Stack]]:
    for model, method, preset, accumulating in itertools.product(
        checker.table.models, checker.predictor.domain.methods, presets(), (False, True)
    ):
        yield model, method, training_stack(method, accumulating, preset, *[None] * len(SETTINGS))


def _stacks(checker: Checker) -> Iterator[tuple[str, str, Stack]]:
    """Every way to run a model's layers, under every sharding."""
    for model in checker.table.models:
        for way in checker.table.figures(model).layers:
            for sharding, accumulating in itertools.product(("fsdp1", "fsdp2"), (False, True)):
                yield model, way.method, _stack(way, sharding=sharding, gradient_accumulation=accumulating)


def _stack(way: LayerWay, **settings: Any) -> Stack:
    return Stack(
        optim="sgd",  # nothing that would hide a difference
        torch_dtype=way.torch_dtype,
        mixed_precision=way.mixed_precision,
        adapter_dtype=way.adapter_dtype,
        lora_dropout=0.05 if way.dropout else 0.0,
        gradient_checkpointing=way.gradient_checkpointing,
        lora_targets=way.lora_targets,
        quantization="nf4" if way.method == "qlora" else "none",
        **settings,
    )


def _more_gpus(checker: Checker) -> Violations:
    for model, method, stack in _stacks(checker):
        held = checker.figures(model, method, stack, several=True)
        yield f"{model}, {method}, {stack}" if isinstance(held, Held) and held.grows_with_gpus() else ""


def _second_gpu(checker: Checker) -> Violations:
    edges = [_edge_gib(checker.predictor, sharded) for sharded in (0.0, 1.0)]
    for model, method, stack in _presets(checker):
        if stack.sharding == "ddp" or stack.mixed_precision == "bf16" or method == "qlora":
            continue
        one, several = (checker.figures(model, method, stack, several=of) for of in (False, True))
        if isinstance(one, Outside) or isinstance(several, Outside):
            continue
        tokens = checker.tokens
        on_one = one.needed_bytes(np.ones(len(tokens)), tokens, checker.reserve) / GIB + edges[0]
        on_two = several.needed_bytes(np.full(len(tokens), 2), tokens / 2, checker.reserve) / GIB + edges[1]
        yield f"{model}, {method}" if (on_two > on_one).any() else ""


def _edge_gib(predictor: Predictor, sharded: float) -> float:
    headroom = np.linspace(-3, 3, 6001)
    return float(headroom[predictor.answers(pd.DataFrame({"headroom_gib": headroom, "sharded": sharded})).argmax()])


def _lora(checker: Checker) -> Violations:
    for model, accumulating in itertools.product(checker.table.models, (False, True)):
        for several in (False, True):
            lora, full = (
                checker.figures(model, method, Stack(gradient_accumulation=accumulating), several=several)
                for method in ("lora", "full")
            )
            if isinstance(lora, Held) and isinstance(full, Held):
                yield model if checker.exceeds(lora, full, _COUNTS[1:] if several else (1,)) else ""


def _checkpointing(checker: Checker) -> Violations:
    for model in checker.table.models:
        figures = checker.table.figures(model)
        for way in figures.layers:
            if way.gradient_checkpointing == "none":
                continue
            without = way._replace(gradient_checkpointing="none")
            if without not in figures.layers:
                continue
            for several, sharding in ((False, "ddp"), (True, "fsdp1"), (True, "fsdp2")):
                for accumulating in (False, True):
                    pair = [
                        checker.figures(
                            model, way.method, _stack(of, sharding=sharding, gradient_accumulation=accumulating), several=several
                        )
                        for of in (way, without)
                    ]
                    if isinstance(pair[0], Held) and isinstance(pair[1], Held):
                        broken = checker.exceeds(*pair, counts=(2, 64) if several else (1,))
                        yield f"{model}, {way}, {sharding if several else 'one GPU'}" if broken else ""


def _optimizers(checker: Checker, better: str, itemsizes: tuple[int, ...]) -> Violations:
    """States and temporaries are all that optimizers differ by, and both are added to what else is held."""
    for model in checker.table.models:
        for (method, targets), trainable in checker.table.figures(model).units.items():
            for itemsize in itemsizes:
                shapes = [shape._replace(itemsize=itemsize) for shape, count in trainable.shapes for _ in range(count)]
                less, more = (optimizer_bytes(optim, shapes) for optim in (better, "adamw_torch"))
                broken = less.states > more.states or less.step > more.step
                yield f"{model}, {method}, {targets}, {itemsize} bytes" if broken else ""


def _ranks(checker: Checker) -> Violations:
    """Everything that adapters hold is a multiple of their rank, and no multiple is negative."""
    columns = [StackMoment._fields.index(name) for name in ("constant_per_rank", "per_token_per_rank", "own", "newborn", "done")]
    for model, ways in _all_ways(checker.table):
        for way in ways:
            if isinstance(way, LayerWay) and way.method != "full":
                moments = checker.table.moments(model, way)
                yield f"{model}, {way}" if moments is not None and (moments[:, columns] < 0).any() else ""


def _chunked(checker: Checker) -> Violations:
    """At each point of the head, where gathered parameters are the same."""
    for model in checker.table.models:
        heads = checker.table.figures(model).heads
        for way in heads:
            full = way._replace(loss="full")
            if way.loss == "chunked" and full in heads:
                broken = any(
                    _exceeds_at(point, checker.table.moments(model, way), checker.table.moments(model, full))
                    for point in (Point.HEAD, Point.TURN, Point.LOSS)
                )
                yield f"{model}, {way}" if broken else ""


def _exceeds_at(point: Point, one: Any, other: Any) -> bool:
    """Whether one head holds more than another from ``_CHUNKED_FROM`` tokens on."""
    tokens = np.geomspace(_CHUNKED_FROM, 2**30, 60)
    points = (point, Point.HEAD_OVER) if point == Point.HEAD else (point,)
    held = [rows[np.isin(rows[:, 0], points)] for rows in (one, other)]
    most = [(rows[:, 1:2] + rows[:, 5:6] + rows[:, 2:3] * tokens).max(axis=0) for rows in held]
    return bool((most[0] > most[1] * (1 + _TOLERANCE)).any())


Comparison = Callable[[Checker], Violations]
