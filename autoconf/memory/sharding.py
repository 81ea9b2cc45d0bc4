"""Memory of each GPU of a sharded job in closed form, derived from its memory on one GPU.

FSDP gathers, frees and reduces units (each decoder layer, and the root: embeddings, final norm and head) where a unit
begins or ends; the code in between is unchanged. So the bytes of a GPU at any moment are those of the same moment on a
single GPU, with parameters and gradients replaced by those that FSDP holds at that point. The schedules were read
from traces of PyTorch's wrappers (``fsdp_schedules``) and are tested against them (``make ground-truth``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from autoconf.jobs.stack import Offload
from autoconf.memory.fsdp_schedules import (
    FSDP1,
    FSDP1_ADAPTERS,
    FSDP1_HOLDS_ALL,
    FSDP1_KEEPS,
    FSDP2,
    FSDP2_KEEPS,
    Gathered,
    Schedule,
)
from autoconf.memory.gpu_memory import GpuMemory, Moments
from autoconf.memory.needs import Resident
from autoconf.memory.optimizers import OptimizerBytes
from autoconf.memory.profile import NO_TOWER, Point, TowerUnits, Units
from autoconf.memory.trained import FROZEN, TrainedWhole
from autoconf.memory.units import Floats, Integers

# Data parallelism over several GPUs; ``none`` is a single GPU.
Strategy = Literal["none", "ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class BytesPerParameter:
    """Bytes of one frozen and of one trainable parameter: as stored, and in the dtype of computation."""

    frozen: int
    trainable: int
    frozen_computing: int
    trainable_computing: int

    @property
    def stored_per_computed(self) -> float:
        """Ratio of the bytes of a trainable parameter as stored to its bytes in the dtype of computation."""
        return self.trainable / self.trainable_computing


@dataclass(frozen=True)
class UnshardedJob:
    """The parameters and the optimizer of a job, without sharding.

    Attributes:
        units: numbers of parameters.
        bytes_per_parameter: bytes of frozen and trainable parameters.
        accumulating: whether an optimizer step takes several micro-batches.
        rank: rank of the adapters, >= 1; ``None`` if all parameters are trained.
        optimizer: states, and temporaries of the step, in bytes, summed over all GPUs.
        upcast: bytes that frozen parameters take in addition, because they became float32 after they were loaded.
        offload: what the host holds.
        reference: bytes of the parameters of a reference model.
        per_quantized: bytes of a quantized weight.
        reduces_each: whether FSDP reduces the gradients of every micro-batch, not only of the last one.
        keeps_gathered: whether FSDP keeps parameters whole from the forward to the backward pass.
        per_node: GPUs of a node, if FSDP shards among these alone; 0 for all GPUs.
        keeps_reduced: whether FSDP2 keeps the buffers of an all-reduce between nodes through the backward pass.
        whole: embeddings and head that are trained beside adapters.
        tower: what a vision tower has.
    """

    units: Units
    bytes_per_parameter: BytesPerParameter
    accumulating: bool
    rank: int | None
    optimizer: OptimizerBytes
    upcast: int = 0
    offload: Offload = "none"
    reference: float = 0.0
    per_quantized: float = 0.5
    reduces_each: bool = False
    keeps_gathered: bool = False
    per_node: int = 0
    keeps_reduced: bool = False
    whole: TrainedWhole = FROZEN
    tower: TowerUnits = NO_TOWER

    @property
    def adapted(self) -> int:
        """Number of trainable parameters of layers, or of the model if there are no adapters."""
        return self.units.trainable * (self.rank or 1)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return self.adapted + self.whole.parameters

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of all trainable parameters."""
        return self.adapted * self.bytes_per_parameter.trainable_computing + self.whole.gradients

    @property
    def sharded_weights(self) -> float:
        """Bytes of the stored parameters that sharding divides."""
        per = self.bytes_per_parameter
        frozen = self.units.frozen * per.frozen + self.upcast + self.units.quantized * self.per_quantized
        return frozen + self.adapted * per.trainable + self.whole.weights + self.reference

    @property
    def offloads(self) -> bool:
        """Whether the host holds the optimizer."""
        return self.offload in ("optimizer", "optimizer_and_parameters")

    @property
    def weights_on_gpu(self) -> float:
        """Bytes of ``sharded_weights`` that are not on the host between their uses."""
        return 0.0 if self.offload in ("parameters", "optimizer_and_parameters") else self.sharded_weights

    def unsharded_gradients(self, strategy: Strategy) -> float:
        """Bytes of gradients that FSDP keeps whole on every GPU between micro-batches."""
        return self.gradients if self.keeps_whole_gradients and strategy in ("fsdp1", "fsdp2") else 0.0

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether FSDP keeps whole gradients until the last micro-batch."""
        return self.accumulating and not self.reduces_each

    def resident(self, strategy: Strategy) -> Resident:
        """The minimum that training holds."""
        states = self.optimizer.states
        if strategy in ("fsdp1", "fsdp2") and self.offloads:
            return Resident(self.units.unsharded_bytes, sharded=0.0)
        if strategy in ("fsdp1", "fsdp2"):
            gradients = min(1.0, self.bytes_per_parameter.stored_per_computed) * self.gradients
            states += gradients
            return Resident(self.units.unsharded_bytes, self.sharded_weights + states, states_sharded=states)
        weights = self.sharded_weights + self.units.unsharded_bytes
        states += self.gradients + _buckets(self, strategy)
        return Resident(weights + states, sharded=0.0, states=states)

    def moments(self, profile: Floats) -> UnshardedMoments:
        """A profile at the rank of this job."""
        constant, per_token, constant_per_rank, per_token_per_rank, *gradients = profile[:, 1:].T
        of_adapters = self.rank or 0
        activations = [constant + of_adapters * constant_per_rank, per_token + of_adapters * per_token_per_rank]
        scaled = [column * (self.rank or 1) for column in gradients]
        return UnshardedMoments(profile[:, 0].astype(int), np.stack(activations, axis=1), *scaled)


class UnshardedMoments(NamedTuple):
    """Columns of ``StackMoment`` for a job; all but ``activations`` have shape (moments,)."""

    points: Integers
    activations: Floats  # shape (moments, 2): constant, and per token
    layer_gradients: Floats
    newest_gradient: Floats
    finished_gradients: Floats
    root_gradients: Floats

    def at(self, moments: Integers) -> UnshardedMoments:
        """Select moments by index."""
        points, *others = self
        return UnshardedMoments(points[moments], *(column[moments] for column in others))


def sharded(profile: Floats, job: UnshardedJob, strategy: Strategy) -> GpuMemory:
    """Memory of each GPU of a job under a sharding strategy.

    Args:
        profile: moments of a micro-batch with the columns of ``StackMoment``, shape (moments, 9), in bytes. For FSDP,
            the parameters of the traced run have the dtype in which FSDP gathers them.
        job: the rest of the job.
        strategy: how the GPUs share it.

    >>> from autoconf.memory.profile import StackMoment
    >>> units = Units(frozen=0, trainable=1050, quantized=0, layer_frozen=0, layer_trainable=100, layer_quantized=0,
    ...               root_frozen=0, root_trainable=50, absmax_bytes=0)
    >>> moment = StackMoment(Point.MIDDLE, constant=7, per_token=30, constant_per_rank=0, per_token_per_rank=0,
    ...                      layer_gradients=200, newest_gradient=200, finished_gradients=1000, root_gradients=100)
    >>> job = UnshardedJob(units, BytesPerParameter(2, 2, 2, 2), accumulating=False, rank=None,
    ...                    optimizer=OptimizerBytes(states=4200, step=0))
    >>> profile = np.array([moment], float)
    >>> sharded(profile, job, "none").peak_bytes(gpus=np.array([1]), tokens=np.array([1000])).tolist()
    [37607.0]
    >>> sharded(profile, job, "fsdp2").peak_bytes(gpus=np.array([2, 4]), tokens=np.array([500, 250])).tolist()
    [19657.0, 10332.0]
    """
    moments = job.moments(profile)
    if strategy == "fsdp1":
        composed = _fsdp1(job, moments)
    elif strategy == "fsdp2":
        composed = _fsdp2(job, moments)
    else:
        composed = _replicated(job, moments, _buckets(job, strategy))
    return GpuMemory(composed, job.resident(strategy), job.unsharded_gradients(strategy), per_node=job.per_node)


def _buckets(job: UnshardedJob, strategy: Strategy) -> int:
    # torch/csrc/distributed/c10d/reducer.cpp: DDP's buckets are a second copy of the gradients.
    return job.gradients if strategy == "ddp" else 0


def _replicated(job: UnshardedJob, moments: UnshardedMoments, buckets: int) -> list[Moments]:
    """Every GPU holds the whole job."""
    weights, states = job.sharded_weights + job.units.unsharded_bytes, job.optimizer.states
    if job.accumulating:
        gradients = job.gradients + moments.newest_gradient
    else:
        gradients = moments.layer_gradients + moments.finished_gradients + moments.root_gradients
    micro_batch = Moments(moments.activations, weights=weights, gradients=gradients + buckets, optimizer=states)
    inputs = np.array([[0.0, job.tower.inputs_per_token]])
    step = Moments(inputs, weights=weights, gradients=job.gradients + buckets, optimizer=states + job.optimizer.step)
    return [micro_batch, step]


def _fsdp1(job: UnshardedJob, moments: UnshardedMoments) -> list[Moments]:
    adapters = job.rank is not None
    # The memory that FSDP1 gathers for single adapters is negligible.
    schedule = FSDP1_ADAPTERS if adapters else FSDP1
    if job.keeps_gathered:
        schedule = FSDP1_HOLDS_ALL if job.keeps_whole_gradients else FSDP1_KEEPS
    # _flat_param.py, _use_low_precision_shard: a shard of the host is moved to the GPU as it is stored.
    held = _gathering(job, moments, schedule, trainable_of_layers=not adapters, moves_stored=job.offloads)
    if job.keeps_whole_gradients:
        # New gradients are views into one flat gradient of the unit, which joins the accumulated one at its end.
        gradients = job.gradients + held.moments.layer_gradients + held.moments.root_gradients + held.reduced
        return [held.with_gradients(job, gradients), *_step_on_shards(job)]
    return [_reduced_at_once(job, held), *_step_on_shards(job)]


def _fsdp2(job: UnshardedJob, moments: UnshardedMoments) -> list[Moments]:
    held = _gathering(job, moments, FSDP2_KEEPS if job.keeps_gathered else FSDP2)
    stored, newest = job.bytes_per_parameter.stored_per_computed, held.moments.newest_gradient
    finished = held.moments.finished_gradients
    if job.keeps_whole_gradients:
        # Only the last micro-batch reduces the gradients of finished layers.
        before_last = held.with_gradients(job, job.gradients + newest)
        last = held.with_gradients(
            job, job.gradients + newest + held.reduced - finished, finished * stored + _kept(job, held)
        )
        return [before_last, last, *_step_on_shards(job)]
    # After the root's gradients are copied for reduction, only the last one is still held. The result is held once, or
    # twice if it is stored in another dtype.
    at_tail = held.moments.points == Point.TAIL_END
    root = np.where(at_tail, 1.0, 0.0) * held.root.gradients * (stored + (stored != 1))
    unreduced = held.moments.layer_gradients + held.moments.root_gradients + held.reduced
    sharded = _shards_of_gradients(job, held) + root
    tail = held.with_gradients(job, np.where(at_tail, newest + held.reduced, unreduced), sharded)
    return [_reduced_at_once(job, held), tail, *_step_on_shards(job)]


def _reduced_at_once(job: UnshardedJob, held: _Gathering) -> Moments:
    """Moments of a micro-batch that is reduced: gradients of a layer are sharded after its backward pass."""
    unreduced = held.moments.layer_gradients + held.moments.root_gradients + held.reduced
    return held.with_gradients(job, unreduced, _shards_of_gradients(job, held))


def _shards_of_gradients(job: UnshardedJob, held: _Gathering) -> Floats:
    """Bytes of gradients that are sharded: those of finished layers, or of earlier micro-batches and the newest unit.

    _fully_shard/_fsdp_collectives.py, foreach_reduce, and _runtime_utils.py, _accumulate_sharded_grad: a reduced
    gradient is added to the one before.
    """
    stored = job.bytes_per_parameter.stored_per_computed
    if not job.accumulating:
        return held.moments.finished_gradients * stored + _kept(job, held)
    newest = np.where(held.moments.finished_gradients > 0, max(held.layer.gradients, held.root.gradients), 0.0)
    return stored * (job.gradients + newest) + _kept(job, held)


def _kept(job: UnshardedJob, held: _Gathering) -> float | Floats:
    """Buffers of the all-reduce between nodes; the first gradient of a parameter in the same dtype is a part of one.

    _fully_shard/_fsdp_param_group.py, AllReduceState: each unit has its own until finalize_backward.
    """
    if not job.keeps_reduced or (job.bytes_per_parameter.stored_per_computed == 1 and not job.reduces_each):
        return 0.0
    return held.moments.finished_gradients


def _step_on_shards(job: UnshardedJob) -> list[Moments]:
    """The moment of the optimizer's step on shards, which is on the host if it offloads."""
    if job.offloads:
        return []
    stored, states = job.bytes_per_parameter.stored_per_computed, job.optimizer.states
    inputs = np.array([[0.0, job.tower.inputs_per_token]])
    step = Moments(
        inputs, weights=job.units.unsharded_bytes, weights_sharded=job.sharded_weights,
        gradients_sharded=job.gradients * stored, optimizer_sharded=states + job.optimizer.step,
    )  # fmt: skip
    return [step]


class _UnitBytes(NamedTuple):
    """Bytes of one FSDP unit when it is gathered."""

    gathered: float
    cast: float  # the part of ``gathered`` of which the GPU's own shard is copied: stored in another dtype or place
    gradients: float
    stored: float  # bytes, as stored, of parameters that are stored in another dtype


class _Gathering(NamedTuple):
    """Moments of a job with FSDP's copies and buffers; a point with several phases has a moment for each."""

    moments: UnshardedMoments
    root: _UnitBytes
    layer: _UnitBytes
    gathered: Floats  # bytes on every GPU, shape (moments,)
    cast: Floats  # bytes that the GPUs divide
    reduced: Floats  # bytes of buffers of gradients that are reduced

    def with_gradients(
        self, job: UnshardedJob, gradients: float | Floats, gradients_sharded: float | Floats = 0.0
    ) -> Moments:
        """The moments with all their parts."""
        if job.offloads:
            # _fully_shard/_fsdp_collectives.py, foreach_reduce, and _runtime_utils.py, _offload_grad: reduced gradients
            # are moved to the host unit by unit.
            stored = job.bytes_per_parameter.stored_per_computed
            gradients_sharded = np.minimum(gradients_sharded, stored * max(self.root.gradients, self.layer.gradients))
        return Moments(
            self.moments.activations, weights=job.units.unsharded_bytes, weights_sharded=job.weights_on_gpu,
            gradients=gradients, gradients_sharded=gradients_sharded,
            optimizer_sharded=0.0 if job.offloads else job.optimizer.states,
            gathered=self.gathered, gathered_sharded=self.cast,
        )  # fmt: skip


def _gathering(
    job: UnshardedJob,
    moments: UnshardedMoments,
    schedule: Schedule,
    *,
    trainable_of_layers: bool = True,
    moves_stored: bool = False,
) -> _Gathering:
    index, columns = schedule.at(moments.points)
    copies: dict[str, Floats] = dict(zip(Gathered._fields, columns, strict=True))
    root, layer = _root_bytes(job), _layer_bytes(job, gathers_trainable=trainable_of_layers)
    if moves_stored:
        root, layer = (unit._replace(cast=unit.cast + unit.stored) for unit in (root, layer))
    all_layers = _all_layers(job)
    finished = moments.finished_gradients[index] / max(all_layers.gradients, 1)
    kept = copies["kept"] * all_layers.gathered * (1.0 if schedule is FSDP1_HOLDS_ALL else 1 - finished)
    return _Gathering(
        moments.at(index),
        root,
        layer,
        gathered=copies["root"] * root.gathered + copies["layer"] * layer.gathered + kept,
        cast=copies["root_cast"] * root.cast + copies["layer_cast"] * layer.cast,
        reduced=copies["reduced"] * layer.gradients + copies["root_reduced"] * root.gradients,
    )


def _root_bytes(job: UnshardedJob) -> _UnitBytes:
    units, whole = job.units, job.whole
    frozen, quantized = units.root_frozen - job.tower.blocks, job.tower.root_quantized
    unit = _unit_bytes(job, frozen, units.root_trainable, quantized, gathers_trainable=True)
    cast = whole.gradients if whole.stored != whole.computing else 0
    return _UnitBytes(
        unit.gathered + whole.gradients, unit.cast + cast, unit.gradients + whole.gradients,
        unit.stored + (whole.weights if cast else 0),
    )  # fmt: skip


def _layer_bytes(job: UnshardedJob, *, gathers_trainable: bool) -> _UnitBytes:
    units = job.units
    return _unit_bytes(job, units.layer_frozen, units.layer_trainable, units.layer_quantized, gathers_trainable)


def _all_layers(job: UnshardedJob) -> _UnitBytes:
    """All decoder layers together."""
    units = job.units
    frozen, trainable = units.frozen - units.root_frozen, units.trainable - units.root_trainable
    return _unit_bytes(job, frozen, trainable, units.quantized, gathers_trainable=True)


def _unit_bytes(job: UnshardedJob, frozen: int, trainable: int, quantized: int, gathers_trainable: bool) -> _UnitBytes:
    per = job.bytes_per_parameter
    gradients = trainable * (job.rank or 1) * per.trainable_computing
    frozen_bytes, trainable_bytes = frozen * per.frozen_computing, gradients if gathers_trainable else 0
    cast_frozen = frozen_bytes if per.frozen != per.frozen_computing else 0
    cast_trainable = trainable_bytes if per.trainable != per.trainable_computing else 0
    gathered = frozen_bytes + trainable_bytes + quantized * job.per_quantized
    stored = cast_frozen * per.frozen / per.frozen_computing + cast_trainable * per.stored_per_computed
    return _UnitBytes(gathered, gathered if job.offloads else cast_frozen + cast_trainable, gradients, stored)
