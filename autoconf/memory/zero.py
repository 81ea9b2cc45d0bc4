"""Memory of each GPU of a job under DeepSpeed's ZeRO, derived from its memory on one GPU.

The figures were read from the code of DeepSpeed 0.19.8 and are tested against its processes
(``make zero-ground-truth``). Each comment names its source in deepspeed/runtime/zero.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache

import numpy as np

from autoconf.memory.gpu_memory import GpuMemory, Moments
from autoconf.memory.needs import Curves
from autoconf.memory.profile import Point
from autoconf.memory.sharding import UnshardedMoments
from autoconf.memory.units import Floats, Integers
from autoconf.memory.zero_coordinator import PARTS, gathered_parameters
from autoconf.memory.zero_job import ZeroJob, ZeroStage
from autoconf.memory.zero_reduction import arrivals

_MOST_GPUS = 512  # the memory on more GPUs is that on this many
_NO_ACTIVATIONS = np.zeros((1, 2))
_BYTES_OF_A_NORM = 8  # utils.py, get_norm_dtype: float64
# Parts of a micro-batch.
_BEFORE_LOSS = (
    Point.EMBEDDING, Point.FIRST_GATHER, Point.GATHER, Point.FORWARD, Point.HEAD, Point.HEAD_OVER, Point.TURN,
)  # fmt: skip
_LAST = (Point.LAST_START, Point.LAST, Point.LAST_LATE)
_EMBEDDINGS = (Point.TAIL, Point.TAIL_END)
# The parts of a backward pass in which gradients arrive.
_REDUCING = {
    "loss": (Point.LOSS,), "last": _LAST, "middle": PARTS["middle"], "first": PARTS["first"], "tail": _EMBEDDINGS,
}  # fmt: skip


class _Curve(IntEnum):
    """Elements that depend on the number of GPUs, on the GPU where they are most."""

    OWNED = 0  # whole parameters that a GPU's partition touches
    OWNED_LAST = 1  # the same of the GPU whose partition is the end of the model
    STEPPED = 2  # what the optimizer steps over at once
    NORMED = 3  # the largest piece of a parameter in one partition
    SPLIT_LAYER = 4  # the largest parameter of a layer that two partitions share
    SPLIT_ROOT = 5  # the same of embeddings and head
    OWNED_LARGE = 6  # as OWNED, of parameters that are larger than the bucket


def _coefficients(**elements: float) -> Floats:
    """Coefficients of the curves, in bytes per element, by the names of ``_Curve``."""
    found = np.zeros(len(_Curve))
    for name, value in elements.items():
        found[_Curve[name.upper()]] = value
    return found


def zero(profile: Floats, job: ZeroJob, stage: ZeroStage) -> GpuMemory:
    """Memory of each GPU of a job under one of ZeRO's stages.

    Args:
        profile: moments of a micro-batch with the columns of ``StackMoment``, shape (moments, 9), in bytes.
        job: the rest of the job.
        stage: ZeRO's stage.
    """
    moments = job.job.moments(profile)
    if stage == "zero3":
        return GpuMemory(_zero3(job, moments), job.resident(stage), curves=_curves3(job))
    composed = _zero1_or_2(job, moments, partitions_gradients=stage == "zero2")
    return GpuMemory(composed, job.resident(stage), curves=_curves(job))


def _zero1_or_2(zero: ZeroJob, moments: UnshardedMoments, *, partitions_gradients: bool) -> list[Moments]:
    """stage_1_and_2.py: whole parameters in flat buffers; float32 parameters and states of one partition of these."""
    job = zero.job
    weights = job.sharded_weights + job.units.unsharded_bytes
    if job.offloads:
        (gradients, curves), end = _offloaded(zero, moments, partitions_gradients=partitions_gradients)
        after: list[tuple[float, dict[str, float]]] = [(end, {"normed": _BYTES_OF_A_NORM})]
    else:
        gradients, curves = (_partitioned if partitions_gradients else _replicated)(zero, moments)
        after = [*_end(zero, partitions_gradients), *_steps(zero)]
    micro_batch = Moments(
        moments.activations, weights=weights, gradients=gradients, gradients_curves=curves,
        optimizer_sharded=zero.states,
    )  # fmt: skip
    return [
        micro_batch,
        *(
            Moments(
                _NO_ACTIVATIONS, weights=weights, gradients=whole, gradients_curves=_coefficients(**elements),
                optimizer_sharded=zero.states,
            )
            for whole, elements in after
        ),
    ]  # fmt: skip


def _offloaded(
    zero: ZeroJob, moments: UnshardedMoments, *, partitions_gradients: bool
) -> tuple[tuple[Floats, Floats], float]:
    """Gradients that move to the host after their reduction, in a micro-batch and at its end.

    copy_grads_in_partition: the norm of a piece is computed in float64 when the next gradient does not fit into the
    bucket. Before the last micro-batch of a step, ZeRO-2 leaves gradients that are larger than the bucket on the GPU
    until the backward pass is over; without that, ZeRO-1 moves all after the backward pass if communication does not
    overlap.
    """
    job, bucket = zero.job, zero.itemsize * zero.buckets.reduce_bucket_size
    # temp_grad_buffer_for_gpu_offload, and the copy of a gradient that is larger than the bucket
    buffer = float(zero.itemsize * max(zero.trainable.flat()))
    newest = moments.newest_gradient
    curves = np.zeros((len(newest), len(_Curve)))
    reduced = np.where(newest > 0, _at_arrivals(zero, moments, "largest"), 0.0)
    alive = _so_far(moments) > 0
    if partitions_gradients:
        # A head that is larger than the bucket is reduced when the gradient of the last norm arrives.
        at_head = np.where(moments.points == Point.LOSS, moments.layer_gradients - newest, 0.0)
        large_head = max(zero.trainable.head, default=0) > zero.buckets.reduce_bucket_size
        held, end = np.maximum(_pending(zero, moments), newest + at_head * large_head), buffer
        if job.accumulating:
            curves[moments.points != Point.LOSS] = _coefficients(owned_large=zero.itemsize)
    elif job.accumulating:
        held, end, alive = job.gradients + newest, job.gradients, np.full(len(newest), True)
    else:
        held, end = _so_far(moments), job.gradients
        if zero.buckets.overlap_comm and _largest(zero) <= zero.buckets.reduce_bucket_size:
            # Gradients of layers are views of the bucket then.
            at_head = np.where(moments.points == Point.LOSS, moments.layer_gradients, 0.0)
            held = np.minimum(held, newest + moments.root_gradients + at_head)
            end = min(end, zero.itemsize * sum(zero.trainable.embeddings + zero.trainable.head))
    if not (partitions_gradients or zero.buckets.overlap_comm):
        reduced = np.zeros(len(newest))
    copied = np.maximum(_BYTES_OF_A_NORM * reduced, np.where(newest > bucket, newest, 0.0))
    gradients = np.where(alive, held + copied + _buckets(zero), 0.0)
    return (gradients + buffer, curves), end + buffer + _buckets(zero)


def _so_far(moments: UnshardedMoments) -> Floats:
    return moments.layer_gradients + moments.finished_gradients + moments.root_gradients


def _buckets(zero: ZeroJob) -> float:
    # setup_buckets: a second one if communication overlaps.
    return zero.itemsize * zero.buckets.reduce_bucket_size * (2 if zero.buckets.overlap_comm else 1)


def _replicated(zero: ZeroJob, moments: UnshardedMoments) -> tuple[Floats, Floats]:
    """ZeRO-1: gradients stay whole until the last micro-batch is over, or are reduced in it if communication overlaps.

    The bucket exists from the first gradient on.
    """
    so_far = _so_far(moments)
    if zero.job.accumulating:
        gradients = zero.job.gradients + moments.newest_gradient + _buckets(zero)
    else:
        gradients = so_far + np.where(so_far > 0, _buckets(zero), 0)
    curves = np.zeros((len(so_far), len(_Curve)))
    if zero.buckets.overlap_comm:
        backward = ~np.isin(moments.points, (*_BEFORE_LOSS, Point.LOSS))
        curves[backward] = _coefficients(owned_last=zero.itemsize)
    return gradients, curves


def _partitioned(zero: ZeroJob, moments: UnshardedMoments) -> tuple[Floats, Floats]:
    """ZeRO-2: gradients go into a bucket, and after its reduction into a buffer for the partition.

    Parameters that are larger than the bucket are reduced by themselves when the next gradient arrives. The gradients
    of earlier micro-batches are in a buffer of their own (independent_gradient_partition_epilogue).
    """
    before = _so_far(moments) == 0
    gradients = np.where(before, 0.0, _pending(zero, moments) + _buckets(zero))
    curves = np.zeros((len(before), len(_Curve)))
    if zero.job.accumulating:
        curves[:] = _coefficients(owned=zero.itemsize)
    last, embeddings = np.isin(moments.points, _LAST) & ~before, np.isin(moments.points, _EMBEDDINGS)
    curves[last] += _coefficients(owned_last=zero.itemsize)
    curves[embeddings] += _coefficients(owned=zero.itemsize, split_root=zero.itemsize)
    middle = ~(before | last | embeddings | (moments.points == Point.LOSS))
    curves[middle] += _coefficients(owned_last=zero.itemsize)
    return gradients, curves


def _pending(zero: ZeroJob, moments: UnshardedMoments) -> Floats:
    """Bytes of gradients outside of buckets: the newest, and the one before it if it is larger than the bucket."""
    bucket = zero.itemsize * zero.buckets.reduce_bucket_size
    largest = zero.itemsize * _largest(zero)
    before = np.minimum(moments.layer_gradients - moments.newest_gradient, largest if largest > bucket else 0)
    at_head = moments.points == Point.LOSS
    head = np.isin(moments.points, _LAST) & (moments.layer_gradients <= moments.newest_gradient)
    of_head = np.where(at_head | head, moments.root_gradients, 0.0)
    at_embeddings = np.isin(moments.points, _EMBEDDINGS)
    return np.where(at_embeddings, moments.newest_gradient, moments.newest_gradient + before + of_head)


def _largest(zero: ZeroJob) -> int:
    """Elements of the largest trainable parameter of a layer."""
    return max((size for layer in zero.trainable.layers for size in layer), default=0)


def _end(zero: ZeroJob, partitions_gradients: bool) -> list[tuple[float, dict[str, float]]]:
    """The end of the last backward pass."""
    if partitions_gradients or zero.buckets.overlap_comm:
        return []
    # reduce_gradients: from the first parameter to the last. A copy of what several partitions share is released before
    # the first partition's buffer is made, and later ones replace gradients that have moved into that buffer.
    added: list[dict[str, float]] = [{name: zero.itemsize} for name in ("owned", "split_layer", "split_root")]
    return [(zero.job.gradients + _buckets(zero), elements) for elements in added]


def _steps(zero: ZeroJob) -> list[tuple[float, dict[str, float]]]:
    """step: the norm, gradients flattened and converted to float32, the optimizer's own temporaries.

    Gradients of the partition live until the last parameter group is done.
    """
    gradients, flat = zero.itemsize, zero.itemsize
    kept = gradients if len(zero.flat_sizes) > 1 else 0
    return [
        (0.0, {"owned": gradients, "normed": _BYTES_OF_A_NORM}),
        (0.0, {"owned": gradients, "stepped": flat + 4}),
        (0.0, {"owned": kept, "stepped": 4 + zero.temporaries}),
    ]


def _zero3(zero: ZeroJob, moments: UnshardedMoments) -> list[Moments]:
    """stage3.py: all parameters, gradients and states are sharded; the bucket exists from the beginning on."""
    job, buckets, states = zero.job, zero.buckets, zero.states3
    partition = 0 if job.offloads else job.gradients
    bucket = zero.itemsize * buckets.reduce_bucket_size
    gathered = gathered_parameters(zero.calls, buckets, zero.checkpointing, accumulating=job.accumulating)
    # partition_parameters.py, NoGatherHandle: on one GPU, parameters are used in place if they are there.
    in_place = not zero.several and job.weights_on_gpu > 0
    unit = 0 if in_place else job.bytes_per_parameter.frozen_computing
    of_points, moving = np.array([gathered[Point(point)] for point in moments.points.tolist()], float).T
    at_loss = np.flatnonzero(moments.points == Point.LOSS)
    if len(at_loss) > 1:  # the one with most logits is the loss, before the backward pass of the head
        of_points[at_loss[moments.activations[at_loss, 1].argmax()]] = gathered[Point.TURN].whole
    gathered_bytes = unit * (of_points + _persistent(zero))
    backward = ~np.isin(moments.points, _BEFORE_LOSS)
    gradients = bucket + np.where(backward, _pending(zero, moments) + _copies(zero, moments), 0)
    micro_batch = Moments(
        moments.activations + _linear_inputs(zero, moments.points),
        weights=job.units.unsharded_bytes, weights_sharded=job.weights_on_gpu,
        gradients=gradients, gradients_sharded=partition, optimizer_sharded=states,
        gathered=gathered_bytes, gathered_sharded=0.0 if job.weights_on_gpu else unit * moving,
        gradients_curves=_shares_of_reduced(zero, moments) if job.offloads else _coefficients(),
    )  # fmt: skip
    if job.offloads:
        return [micro_batch]
    steps = [
        Moments(
            _NO_ACTIVATIONS, weights=job.units.unsharded_bytes, weights_sharded=job.weights_on_gpu, gradients=bucket,
            gradients_sharded=job.gradients, optimizer_sharded=states, gradients_curves=_coefficients(**elements),
        )
        for elements in (
            {"normed": _BYTES_OF_A_NORM},
            {"stepped": (zero.itemsize + 4) if zero.itemsize < 4 else 4},
            {"stepped": 4 + zero.temporaries},
        )
    ]  # fmt: skip
    return [micro_batch, *steps]


def _shares_of_reduced(zero: ZeroJob, moments: UnshardedMoments) -> Floats:
    """Curves of a GPU's share of the largest reduced gradient, which is cast to float32 on its way to the host."""
    shares = _at_arrivals(zero, moments, "largest") / max(zero.trainable.flat())
    return (zero.itemsize + 4) * np.where(moments.newest_gradient > 0, shares, 0.0)[:, None] * _coefficients(normed=1)


def _copies(zero: ZeroJob, moments: UnshardedMoments) -> Floats:
    """Bytes of the copy of a full bucket that the newest gradient of a moment makes ZeRO-3 reduce."""
    return zero.itemsize * _at_arrivals(zero, moments, "copied")


def _at_arrivals(zero: ZeroJob, moments: UnshardedMoments, field: str) -> Floats:
    """A field of ``Arrival`` for the newest gradient of each moment; 0 if there is none."""
    whole, adapters = zero.job.whole, zero.job.rank is not None
    bucket = zero.buckets.reduce_bucket_size
    found = arrivals(zero.calls, bucket, adapters=adapters, head=whole.head, embeddings=whole.embeddings)
    values = np.zeros(len(moments.points))
    for part, points in _REDUCING.items():
        at = np.isin(moments.points, points)
        # At the embeddings, ``layer_gradients`` are zero: they have one gradient.
        so_far = moments.newest_gradient if part == "tail" else moments.layer_gradients
        gradients = so_far[at] / zero.itemsize
        if len(gradients) and found[part]:
            arrived = found[part]
            before, with_it = np.array([(arrival.before, arrival.with_it) for arrival in arrived], float).T[:, :, None]
            value = np.array([getattr(arrival, field) for arrival in arrived], float)[:, None]
            arrives = (before < gradients - 0.5) & (gradients - 0.5 < with_it)
            values[at] = np.where(arrives, value, 0.0).max(axis=0)
    return values


def _linear_inputs(zero: ZeroJob, points: Integers) -> Floats:
    """Bytes that its own linear layers keep (linear.py, zero3_linear_wrap), in the columns of activations.

    Their backward pass reads input and weight even if the weight is frozen.
    """
    layers, forward = len(zero.calls.layers), (*_BEFORE_LOSS, Point.LOSS)
    if zero.checkpointing != "none":
        of_layers = np.where(np.isin(points, (*forward, *_EMBEDDINGS)), 0.0, 1.0)
    else:
        # A layer releases its MLP's input early in its backward pass, in which most of its memory is used.
        first = (Point.FIRST_START, Point.FIRST, Point.FIRST_LATE, Point.FIRST_END)
        kinds = [np.isin(points, kind) for kind in (forward, _LAST, first, _EMBEDDINGS)]
        of_layers = np.select(kinds, [layers, layers - 0.75, 0.25, 0.0], layers - 1.75)
    of_head = np.isin(points, (Point.HEAD_OVER, Point.TURN, Point.LOSS))
    elements = of_layers * zero.linear_inputs.of_layer + of_head * zero.linear_inputs.of_head
    return np.stack([np.zeros(len(points)), zero.job.bytes_per_parameter.frozen_computing * elements], axis=1)


def _persistent(zero: ZeroJob) -> int:
    """Elements of parameters that stay gathered (parameter_offload.py, mark_persistent_parameters)."""
    limit = zero.buckets.stage3_param_persistence_threshold
    return sum(size for size in zero.calls.sizes() if size <= limit)


def _curves(zero: ZeroJob) -> Curves:
    sizes = zero.trainable
    roots = [*[True] * len(sizes.embeddings), *[False] * sum(map(len, sizes.layers)), *[True] * len(sizes.head)]
    flat = tuple(sizes.flat()), tuple(roots), zero.buckets.reduce_bucket_size
    return _table_of(lambda: _partitions(*flat))


def _curves3(zero: ZeroJob) -> Curves:
    """Sub-groups limit what ZeRO-3 steps over at once (_create_fp16_sub_groups); each parameter is divided."""
    total, largest = zero.job.trainable, max(zero.trainable.flat())

    def table() -> Floats:
        gpus = np.arange(1, _MOST_GPUS + 1)
        found = np.zeros((len(_Curve), _MOST_GPUS))
        found[_Curve.STEPPED] = np.minimum(total / gpus, zero.buckets.sub_group_size + largest / gpus)
        found[_Curve.NORMED] = largest / gpus
        return found

    return _table_of(table)


def _table_of(table: Callable[[], Floats]) -> Curves:
    """Curves from a table that is computed when it is first needed, shape (curves, numbers of GPUs)."""
    computed: list[Floats] = []

    def curves(gpus: Integers) -> Floats:
        if not computed:
            computed.append(table())
        return computed[0][:, np.minimum(gpus, _MOST_GPUS) - 1]

    return curves


@lru_cache(maxsize=512)  # jobs of a table share models; a table takes 28 KB
def _partitions(elements: tuple[int, ...], in_root: tuple[bool, ...], bucket: int) -> Floats:
    """The curves of flat parameters that are divided evenly, for 1 to ``_MOST_GPUS`` GPUs; each nonincreasing.

    Args:
        elements: of each parameter, in order.
        in_root: whether it belongs to embeddings and head.
        bucket: elements of a bucket, which is copied if it has parameters of several partitions.
    """
    sizes, roots = np.array(elements), np.array(in_root)
    gpus = np.arange(1, _MOST_GPUS + 1)
    ends = np.cumsum(sizes)
    partition = -(-ends[-1] // gpus)
    first, last = (ends - sizes)[None] // partition[:, None], (ends - 1)[None] // partition[:, None]
    owned = (_sums_of_rows(first, sizes) - _sums_of_rows(last + 1, sizes)).cumsum(axis=1)
    split = np.where(first != last, sizes[None], 0)
    found = np.zeros((len(_Curve), len(gpus)))
    found[_Curve.OWNED] = owned.max(axis=1)
    found[_Curve.OWNED_LAST] = owned[np.arange(len(gpus)), last[:, -1]]
    found[_Curve.STEPPED] = ends[-1] / gpus
    found[_Curve.NORMED] = np.minimum(sizes.max(), partition)
    found[_Curve.SPLIT_LAYER] = np.maximum(np.where(roots, 0, split).max(axis=1), min(bucket, ends[-1]))
    of_large = np.where(sizes > bucket, sizes, 0)
    found[_Curve.OWNED_LARGE] = (
        (_sums_of_rows(first, of_large) - _sums_of_rows(last + 1, of_large)).cumsum(axis=1).max(axis=1)
    )
    found[_Curve.SPLIT_ROOT] = np.where(roots, split, 0).max(axis=1)
    return np.maximum.accumulate(found[:, ::-1], axis=1)[:, ::-1]


def _sums_of_rows(columns: Integers, values: Integers) -> Floats:
    """Sums of values by row and column, shape (rows, ``_MOST_GPUS`` + 1)."""
    rows, width = len(columns), _MOST_GPUS + 1
    places = columns + width * np.arange(rows)[:, None]
    sums = np.bincount(places.ravel(), np.broadcast_to(values, columns.shape).ravel(), rows * width)
    return np.asarray(sums, np.float64).reshape(rows, width)
