"""Memory of each GPU while a model is loaded that FSDP does not shard: on one GPU, under DDP and DeepSpeed's ZeRO.

The moments of one GPU and DDP are those of ``autoconf.memory.loading``, which knows every parameter. Those of DeepSpeed
were read from the code of its release 0.19.8 and are not compared with its processes yet. ZeRO-1 and 2 need none for
their flat copies: stage_1_and_2.py makes these on the GPU only where it has room for them (``flatten_on_accelerator``),
else in the host's memory, and stage3.py moves shards through the host (``defragment``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from autoconf.jobs.stack import Stack
from autoconf.memory.fsdp_loading import embeddings_of, layers_of
from autoconf.memory.loading import Held, broadcasts, undominated
from autoconf.memory.optimizers import Shape
from autoconf.memory.sharding import Strategy, UnshardedJob
from autoconf.memory.zero_parameters import model_sizes

Shapes = Sequence[tuple[Shape, int]]


class Loaded(NamedTuple):
    """A job's parameters as loaded.

    Args:
        job: the job on one GPU.
        shapes: of the base model's parameters, each with the number of parameters of that shape.
        loaded: bytes of a weight as loaded.
        adapter: bytes of an element of adapters as made.
    """

    job: UnshardedJob
    shapes: Shapes
    loaded: int
    adapter: int

    @property
    def plain(self) -> int:
        """Weights of the base that are not quantized."""
        return self.job.units.frozen if self.job.rank else self.job.units.trainable

    @property
    def base(self) -> float:
        """Bytes of the base."""
        units = self.job.units
        return self.plain * self.loaded + units.quantized * self.job.per_quantized + units.unsharded_bytes

    @property
    def adapters(self) -> float:
        """Bytes of adapters, and of embeddings and head that are trained beside them."""
        return self.job.adapted * self.adapter + self.job.whole.weights if self.job.rank else 0.0

    @property
    def embedding(self) -> int:
        """Elements of the largest embedding."""
        return embeddings_of(self.shapes)[0]

    def largest_in_layers(self) -> tuple[int, int]:
        """Elements of the largest matrix of a layer, and of the largest stack of experts."""
        count, largest = layers_of(self.job), [0, 0]
        for shape, number in self.shapes:
            if number >= count and not shape.embedding:
                kind = len(shape.dimensions) > 2
                largest[kind] = max(largest[kind], shape.elements)
        return largest[0], largest[1]


def quantized_moments(model: Loaded, stack: Stack, strategy: Strategy) -> tuple[str, list[Held]]:
    """What a GPU holds while weights are quantized on it one by one, and while PEFT prepares the others; in words."""
    matrices, experts = model.largest_in_layers()
    # transformers/core_model_loading.py merges the experts of a layer, which most checkpoints have one by one.
    beside = max(matrices * _beside(stack, model.loaded), experts * model.loaded)
    moments = [Held(model.base + beside)]
    if stack.upcast_unquantized == "none" or model.loaded == 4:
        return "all weights, and the one that is quantized in its own dtype, too", moments
    # peft/utils/other.py, prepare_model_for_kbit_training: one parameter after the other, the head first, norms last.
    prepared = model.base + model.plain * (4 - model.loaded)
    after = model.plain - model.embedding - _root_rest(model)
    moments.append(Held(prepared - after * (4 - model.loaded) + model.embedding * model.loaded))
    moments.append(Held(prepared + max(experts * model.loaded, model.adapters)))
    if stack.upcast_unquantized == "norms" or strategy not in ("none", "ddp"):
        # TRL casts embeddings and head back; DeepSpeed casts all to 16 bits (engine.py, _cast_module_mixed_precision).
        moments.append(Held(prepared + model.adapters + model.embedding * model.loaded))
    return "all weights, those that are not quantized in float32", moments


def _root_rest(model: Loaded) -> int:
    """Elements of the root besides its largest embedding, such as a head."""
    units = model.job.units
    return max(0, (units.root_frozen if model.job.rank else units.root_trainable) - model.embedding)


def _beside(stack: Stack, loaded: int) -> float:
    """Bytes for each element of a weight that are beside it while it is quantized.

    transformers/integrations/bitsandbytes.py, Bnb8bitQuantize: the weight as loaded, and a copy in float16
    (bitsandbytes/nn/modules.py, Int8Params._quantize). Bnb4bitQuantize: the weight, and its absmax twice in float32
    (bitsandbytes/functional.py, quantize_4bit). Checkpoints of GPTQ and AWQ are quantized already.
    """
    nf4 = loaded + 8 / 64
    of_bitsandbytes = {"nf4": nf4, "nf4_experts": nf4, "nf4_single": loaded + 4 / 64, "int8": loaded + 2.0}
    return of_bitsandbytes.get(stack.quantization, 0.0)


def ddp_moment(model: Loaded, stack: Stack) -> Held:
    """Weights and the two largest buffers of DDP's broadcast that follow each other."""
    job, per = model.job, model.job.bytes_per_parameter
    count = layers_of(job)
    frozen = per.frozen if job.rank else per.trainable
    widths = _Widths(
        root=4 if stack.upcast_unquantized == "all" else frozen,
        layer=4 if stack.upcast_unquantized != "none" else frozen,
        # On several GPUs 4-bit weights are stored in the dtype of the others (bnb_4bit_quant_storage).
        quantized=model.loaded,
        per_quantized=job.per_quantized,
        adapter=per.trainable,
    )
    adapters = job.adapted // count if job.rank else 0
    buffers = _most_broadcast(tuple(model.shapes), count, widths, job.units.quantized // count, adapters)
    return Held(job.sharded_weights + job.units.unsharded_bytes + buffers)


class _Widths(NamedTuple):
    """Bytes of an element; ``quantized`` of a stored one that has several weights, of ``per_quantized`` bytes each."""

    root: int
    layer: int
    quantized: int
    per_quantized: float
    adapter: int


@lru_cache(maxsize=1024)  # jobs of a table share models
def _most_broadcast(
    shapes: tuple[tuple[Shape, int], ...], layers: int, widths: _Widths, quantized: int, adapters: int
) -> float:
    """Bytes of two buffers; ``quantized`` are weights of a layer, ``adapters`` all elements of its adapters."""
    sizes = model_sizes(shapes, layers)
    of_layers = {layer: _tensors(layer, widths, quantized, adapters) for layer in {*sizes.layers}}
    return max(
        broadcasts(
            [
                *((widths.root, float(widths.root * size)) for size in sizes.embeddings),
                *chain.from_iterable(of_layers[layer] for layer in sizes.layers),
                *((widths.root, float(widths.root * size)) for size in sizes.head),
            ]
        )
    )


def _tensors(layer: tuple[int, ...], widths: _Widths, quantized: int, adapters: int) -> list[tuple[int, float]]:
    """Bytes of an element, and of each tensor of a layer, the largest of which have 4 bits."""
    tensors = []
    for size in sorted(layer, reverse=True) if quantized else layer:
        packed = size <= quantized
        quantized -= size if packed else 0
        tensors.append(
            (widths.quantized, size * widths.per_quantized) if packed else (widths.layer, float(widths.layer * size))
        )
    return [*tensors, (widths.adapter, float(widths.adapter * adapters))] if adapters else tensors


def zero_moments(model: Loaded, stack: Stack, strategy: Strategy) -> tuple[str, list[Held]]:
    """What a GPU holds while DeepSpeed shards a model, or casts one that was loaded on it; in words."""
    job = model.job
    everything = model.base + (model.adapters if job.rank else 0.0)
    quantized = job.units.quantized > 0
    whole = Held(everything + job.reference)
    if strategy != "zero3":
        # engine.py, _cast_module_mixed_precision: one by one.
        casts = stack.loading == "gpu" and model.loaded > job.bytes_per_parameter.frozen and not quantized
        moments = [Held(whole.whole + job.bytes_per_parameter.frozen * model.embedding)] if casts else []
        return "all weights before DeepSpeed casts them", moments
    if quantized or stack.loading == "gpu":
        # transformers/modeling_utils.py, get_init_context: zero.Init is not for quantized models.
        return "all weights before DeepSpeed shards them", [whole]
    return "its shards, and one module whole", _initialized(model)


def _initialized(model: Loaded) -> list[Held]:
    """Each module is whole on each GPU until zero.Init has sharded it, and again while its weights are loaded.

    partition_parameters.py, zero_wrapper_for_fp_tensor_constructor: it is made in the model's dtype, then cast.
    """
    job, width = model.job, model.job.bytes_per_parameter.frozen
    made = width if model.loaded == width else width + model.loaded
    total = job.sharded_weights - (job.adapted * width if job.rank else 0)
    embedding, tied = embeddings_of(model.shapes)
    # A layer's experts are gathered into a buffer and copied out of it, as in training, which holds more then.
    moments = [
        Held(made * embedding, 0.0 if tied else total - width * embedding),
        Held(width * embedding, total),
        Held(made * max(model.largest_in_layers()), total),
        Held(model.adapters, total),
    ]
    buffers = job.units.buffer_bytes
    on_gpu = job.weights_on_gpu > 0
    return [Held(moment.whole + buffers, moment.sharded if on_gpu else 0.0) for moment in moments]


def unsharded_loading(model: Loaded, stack: Stack, strategy: Strategy) -> tuple[str, tuple[Held, ...]]:
    """Moments while a model is loaded, and what the largest of them holds in words; none if training holds more.

    Args:
        model: the job's parameters.
        stack: the training stack.
        strategy: how the GPUs share the job, without FSDP.
    """
    job = model.job
    found: list[tuple[str, list[Held]]] = []
    if job.units.quantized:
        found.append(quantized_moments(model, stack, strategy))
    if strategy == "ddp":
        found.append(("all weights, and buffers of DDP's broadcast", [ddp_moment(model, stack)]))
    elif strategy != "none":
        found.append(zero_moments(model, stack, strategy))
    found = [(what, moments) for what, moments in found if moments]
    if not found:
        return "", ()
    what, _ = max(found, key=lambda each: max(sum(moment) for moment in each[1]))
    return what, undominated(moment for _, moments in found for moment in moments)
