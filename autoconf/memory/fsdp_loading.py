"""Memory of each GPU while a model is loaded that FSDP shards, from the sizes of its units, whose layers are equal.

The moments are those of ``autoconf.memory.loading``, which knows every parameter. Among equal layers, what a GPU holds
grows or shrinks evenly, so the first or the last of them decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from autoconf.jobs.stack import Loading
from autoconf.memory.loading import Held, Parameter, undominated
from autoconf.memory.optimizers import Shape
from autoconf.memory.sharding import Strategy, UnshardedJob


class EqualUnits(NamedTuple):
    """The parameters of a model with equal decoder layers.

    Args:
        embedding: the largest embedding.
        rest: everything else outside of layers.
        plain: those of a layer that are not quantized.
        packed: a matrix of a layer with 4 bits.
        matrices: number of these in a layer.
        adapters: all adapters of a layer.
        layers: number of layers.
        buffers: bytes of the model's buffers.
    """

    embedding: Parameter
    rest: Parameter
    plain: Parameter
    packed: Parameter
    matrices: int
    adapters: Parameter
    layers: int
    buffers: int


def fsdp_loading(
    job: UnshardedJob,
    strategy: Strategy,
    loading: Loading,
    base: Sequence[tuple[Shape, int]],
    loaded: int,
    *,
    shard_adapters: bool,
) -> tuple[Held, ...]:
    """Moments while a model is loaded, one of which is the peak for each number of GPUs.

    Args:
        job: the sizes of the model's units.
        strategy: ``fsdp1`` or ``fsdp2``.
        loading: how the weights come to the GPU; 4-bit ones are always loaded on it.
        base: shapes of the base model's parameters, each with the number of parameters of that shape.
        loaded: bytes of a weight as loaded.
        shard_adapters: whether FSDP1 shards adapters.
    """
    if loading == "rank0" and strategy == "fsdp2" and not job.units.quantized:
        found = _received(job, base)
    else:
        waits = loading == "gpu" or job.units.quantized > 0
        found = unit_moments(equal_units(job, base, loaded), strategy, waits=waits, shard_adapters=shard_adapters)
    if job.offloads:  # shards are on the host
        found = [Held(moment.whole) for moment in found]
    return undominated(found)


def unit_moments(model: EqualUnits, strategy: Strategy, *, waits: bool, shard_adapters: bool) -> list[Held]:
    """Moments of loading, on the GPU first if what is not sharded yet waits there, and of sharding unit by unit."""
    fsdp1 = strategy == "fsdp1"
    copies = 2 if fsdp1 else 1  # FSDP1 has a flat copy of a unit in addition to it

    def size(parameter: Parameter) -> float:
        # accelerate upcasts parameters after FSDP1 has sharded them, but before FSDP2 does.
        return parameter.nbytes if fsdp1 else parameter.trained_bytes

    layer, adapters = size(model.plain) + model.matrices * size(model.packed), size(model.adapters)
    if not fsdp1:  # FSDP1 has a unit for each adapter
        layer, adapters = layer + adapters, 0.0
    root = size(model.embedding) + size(model.rest)
    sharded = layer + (adapters if shard_adapters else 0.0)
    states = model.layers * model.matrices * model.packed.state
    unsharded = 0.0 if shard_adapters else model.layers * adapters
    everything = model.layers * sharded + root
    moments = [Held(states + model.buffers + copies * root + unsharded * waits, everything)]
    for done in (1, model.layers):
        waiting = model.buffers + unsharded + everything - done * sharded if waits else 0.0
        moments.append(Held(states + copies * layer + waiting, done * sharded))
    if fsdp1:
        # accelerate makes float32 shards of those in bfloat16, which stay until the first forward pass.
        upcast = [(1, model.embedding), (1, model.rest), (model.layers, model.plain), (model.layers, model.adapters)]
        more = sum(count * p.trained_bytes for count, p in upcast if p.trained > p.loaded)
        moments.append(Held(states + model.buffers + unsharded, everything + more))
    return [*moments, *(_on_gpu(model, upcasts=not fsdp1) if waits else [])]


def _on_gpu(model: EqualUnits, *, upcasts: bool) -> list[Held]:
    """The last matrix that is quantized, all weights, and the last parameters that accelerate makes float32."""
    packed, count = model.packed, model.layers
    in_layers = count * (model.plain.nbytes + model.matrices * (packed.nbytes + packed.state))
    at_last = model.embedding.nbytes + in_layers
    held = at_last + model.rest.nbytes
    moments = [Held(at_last + packed.copy), Held(held)]
    held += model.buffers + count * model.adapters.nbytes
    for number, parameter in ((1, model.embedding), (count, model.plain), (1, model.rest)):
        if upcasts and parameter.trained > parameter.loaded:
            more = parameter.trained_bytes - parameter.nbytes
            moments.append(Held(held + (number - 1) * more + parameter.trained_bytes))
            held += number * more
    return moments


def equal_units(job: UnshardedJob, base: Sequence[tuple[Shape, int]], loaded: int) -> EqualUnits:
    """The parameters of a job's model, with its layers made equal; arguments as in ``fsdp_loading``."""
    units, rank, per = job.units, job.rank or 0, job.bytes_per_parameter
    trained = per.frozen if rank else per.trainable
    count = layers_of(job)
    if rank:
        in_layers, in_root = units.frozen + units.quantized - units.root_frozen, units.root_frozen
    else:
        in_layers, in_root = units.trainable - units.root_trainable, units.root_trainable + units.frozen
    packed, matrices = 0, 0
    if units.quantized:
        matrix = max(shape.elements for shape, number in base if number >= count and len(shape.dimensions) > 1)
        matrices = max(1, round(units.quantized // count / matrix))
        packed = units.quantized // count // matrices
    adapters = (units.trainable - units.root_trainable) * rank // count
    embedding, _ = embeddings_of(base)
    copies = job.whole  # of embeddings and head: they belong to the root, and may become float32 like adapters
    rest = in_root - embedding + copies.parameters
    return EqualUnits(
        embedding=Parameter(embedding, loaded, trained),
        rest=Parameter(rest, loaded, max(trained, copies.stored) if copies.parameters else trained),
        plain=Parameter((in_layers - units.quantized) // count, loaded, trained),
        packed=Parameter(packed, loaded, loaded, packed=True),
        matrices=matrices,
        adapters=Parameter(adapters, per.trainable, per.trainable, adapter=True),
        layers=count,
        buffers=units.buffer_bytes,
    )


def _received(job: UnshardedJob, base: Sequence[tuple[Shape, int]]) -> list[Held]:
    """accelerate's fsdp2_load_full_state_dict: the received parameter and the one before are whole.

    At the end these are the embeddings or the head, which is received again if tied; two matrices before.
    """
    per = job.bytes_per_parameter.frozen if job.rank else job.bytes_per_parameter.trainable
    root, tied = embeddings_of(base)
    count = layers_of(job)
    matrices = sorted(((shape.elements, number) for shape, number in base if number >= count), reverse=True)
    (largest, number), (second, _) = matrices[0], matrices[min(1, len(matrices) - 1)]
    pair = largest + (largest if number >= 2 * count else second)
    whole, total = job.units.buffer_bytes, job.sharded_weights
    at_end = Held(whole + per * root, total + per * root * tied)
    return [at_end, Held(whole + per * pair, total - per * root * (not tied))]


def embeddings_of(base: Sequence[tuple[Shape, int]]) -> tuple[int, bool]:
    """Elements of the largest embedding, and whether the head is the same parameter."""
    largest = max((shape for shape, _ in base if shape.embedding), key=lambda shape: shape.elements)
    heads = [shape for shape, _ in base if not shape.embedding and shape.dimensions == largest.dimensions]
    return math.prod(largest.dimensions), not heads


def layers_of(job: UnshardedJob) -> int:
    """The number of decoder layers, if these are equal."""
    units = job.units
    if job.rank is None:
        return max(1, round((units.trainable - units.root_trainable) / units.layer_trainable))
    in_layers = units.frozen + units.quantized - units.root_frozen
    return max(1, round(in_layers / (units.layer_frozen + units.layer_quantized)))
