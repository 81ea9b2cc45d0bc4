"""Moments of whole models, extrapolated from short stacks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from small_jobs import small_job

from autoconf.jobs.stack import Stack
from autoconf.memory.profile import Point, StackMoment
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.extrapolate import envelope, head_moments, layer_moments
from autoconf.pipeline.tracing.ledger import Storages, trace
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import EMBEDDING, HEAD, LOSS, Part, TraceError
from autoconf.pipeline.tracing.trace_model import short_stack

RANK = 29


def by_point(moments: list[StackMoment]) -> dict[Point, np.ndarray]:
    """The most of each term at each point."""
    return {
        point: np.max([m[1:] for m in of_point], axis=0)
        for point, of_point in itertools.groupby(sorted(moments), key=lambda m: m.point)
    }


def assert_same(one: list[StackMoment], other: list[StackMoment]) -> None:
    first, second = by_point(one), by_point(other)
    assert set(first) == set(second)
    for point in first:
        # Rounded to seven digits where they are kept; a position or two of hidden states do not matter here.
        np.testing.assert_allclose(first[point], second[point], rtol=1e-6, atol=1, err_msg=point.name)


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stack_of_three_layers_extrapolates_to_the_whole_model(method, checkpointing):
    deep = 7
    job = small_job(method, layers=deep, gradient_checkpointing=checkpointing, gradient_accumulation=False)
    kinds, short = job.architecture.kinds, short_stack(job.architecture)
    assert len(short) == 3
    deepened, whole = (trace(job, stack, RANK) for stack in (short, kinds))
    assert_same(layer_moments(deepened, short, kinds), layer_moments_of_whole(whole, kinds))
    assert_same(head_moments(deepened, short, RANK), head_moments(whole, kinds, RANK))


def layer_moments_of_whole(storages: Storages, kinds: tuple[str, ...]) -> list[StackMoment]:
    """Kinds are made unique, so that each layer represents only itself."""
    unique = tuple(f"{kind} {index}" for index, kind in enumerate(kinds))
    return layer_moments(storages, unique, unique)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_layers_of_each_kind_are_deepened_in_their_places(method):
    kinds = ("mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba")
    model = architectures()["granite-4.0-h-350m"]
    architecture = model.model_copy(update={"config": model.shortened(kinds)})
    job = TrainingSetup(architecture, method, Stack(gradient_accumulation=False))
    short = short_stack(architecture)
    assert short == ("mamba", "attention", "mamba", "mamba")
    deepened, whole = (trace(job, stack, RANK) for stack in (short, kinds))
    one, other = by_point(layer_moments(deepened, short, kinds)), by_point(layer_moments_of_whole(whole, kinds))
    for point in (Point.KEPT, Point.KEPT_OVER, Point.FORWARD, Point.MIDDLE, Point.LAST, Point.TAIL_END):
        np.testing.assert_allclose(one[point], other[point], rtol=0.001, atol=64, err_msg=point.name)


def test_only_moments_that_another_exceeds_in_every_term_are_dropped():
    rows = [(5, 1), (5, 1), (4, 1), (0, 2)]
    moments = [StackMoment(Point.FORWARD, *row, *[0.0] * 6) for row in rows]
    moments.append(StackMoment(Point.HEAD, 1, 0, *[0.0] * 6))  # at another point nothing exceeds it
    kept = envelope(moments)
    assert [(m.point, m.constant, m.per_token) for m in kept] == [
        (Point.FORWARD, 0, 2),
        (Point.FORWARD, 5, 1),
        (Point.HEAD, 1, 0),
    ]


def test_a_backward_pass_that_frees_a_tensor_of_an_earlier_layer_is_refused():
    parts = [
        EMBEDDING, *(Part("layer", i) for i in range(3)), HEAD, LOSS,
        *(Part("layer", i, True) for i in (2, 1, 0)),
    ]  # fmt: skip
    count = len(parts)
    dead = np.full(count, count)
    storages = Storages(
        born=np.arange(count), dead=dead, sizes=np.tile([8.0, 0, 0, 0], (count, 1)),
        gradient_of=np.full(count, -2), parts=parts, ops=["op"] * count,
    )  # fmt: skip
    kinds = ("layer",) * 3
    assert layer_moments(storages, kinds, kinds)
    dead[1] = 6  # what the first layer saved is gone when the last one begins its backward pass
    with pytest.raises(TraceError, match="frees a tensor that an earlier layer saved"):
        layer_moments(storages, kinds, kinds)
