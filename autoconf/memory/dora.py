"""What DoRA adds to LoRA, bounded from above.

peft 0.21.2, tuners/lora/dora.py, DoraLinearLayer: each adapted module trains a vector of as many elements as it has
outputs, counted as one more rank. Its forward pass multiplies both matrices of the adapter into a whole weight, adds it
to the weight of the module, which it unpacks if it is quantized, and takes the norm. The outputs of the module and of
its adapter are kept for the gradient of the vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import LoraTargets, Stack
from autoconf.memory.adapted import AdaptedModules, NamedModules
from autoconf.memory.profile import LayerWay, Point
from autoconf.memory.sharding import Strategy
from autoconf.memory.some_layers import SomeLayers
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import Floats, Unsupported
from autoconf.memory.ways import computes_in_16_bits

_ACTIVATIONS = slice(1, 3)  # constant bytes, and bytes per token
_OUTSIDE_LAYERS = (
    Point.EMBEDDING, Point.HEAD, Point.TURN, Point.LOSS, Point.HEAD_OVER, Point.TAIL, Point.TAIL_END,
)  # fmt: skip
_WEIGHTS = 6  # copies of a weight: of the adapter and scaled, of the module unpacked and cast, their sum, its transpose
_OUTPUTS = 6  # copies of a module's outputs while it runs


class Dora(NamedTuple):
    """Bytes that layers hold in addition to LoRA: constant, and for each token.

    Attributes:
        running: in the layer that runs.
        kept: by all layers for the backward pass, if they are not recomputed.
    """

    running: tuple[float, float]
    kept: tuple[float, float]

    def moments(self, of_lora: Callable[[], Floats]) -> Floats:
        """The moments of a job with LoRA and these bytes; columns of ``StackMoment``, shape (moments, 9)."""
        found = of_lora().copy()
        found[~np.isin(found[:, 0], _OUTSIDE_LAYERS), _ACTIVATIONS] += self.running
        found[:, _ACTIVATIONS] += self.kept
        return found


def dora(
    table: ModelsTable,
    model: str,
    stack: Stack,
    strategy: Strategy,
    way: LayerWay,
    named: NamedModules | None,
    some: SomeLayers | None,
) -> Dora:
    """What a job's layers hold for DoRA.

    Args:
        table: the profiles of models.
        model: a model of the table.
        stack: the training stack.
        strategy: how the GPUs share the job.
        way: how its layers run.
        named: the modules with adapters that the job names, if it does.
        some: the layers with adapters; ``None`` for all.

    Raises:
        Unsupported: it is not known which modules have adapters, or PEFT does not run DoRA on them.
    """
    modules = table.modules(model)
    paths = named.paths if named is not None else _paths(modules, way.lora_targets)
    if modules is None or not paths or not set(paths) <= set(modules.paths):
        # peft/tuners/lora/layer.py, ParamWrapper: lora.ParamWrapper does not work with use_dora=True.
        raise Unsupported(
            [f"use_dora of {model} with lora_targets {way.lora_targets!r}"], ": not all are linear layers"
        )
    # What DoRA makes of parameters that FSDP gathers in 16 bits has 16 bits, but not over a base that is unpacked.
    gathers_16_bits = way.method == "lora" and computes_in_16_bits(stack, strategy)
    autocasts = way.mixed_precision != "no" and not gathers_16_bits
    width = 4 if "float32" in (way.adapter_dtype, way.torch_dtype) or autocasts else 2
    sides = {kind: [of[path] for path in paths if path in of] for kind, of in modules.modules.items()}
    pairs = [pair for of_kind in sides.values() for pair in of_kind]
    weights = max(width * (_WEIGHTS * inputs * outputs + 2 * inputs * inputs) for inputs, outputs in pairs)
    # With dropout, the module is applied again to the input after it, and keeps its unpacked or cast weight. A gathered
    # weight in 16 bits is neither, and FSDP releases it.
    again = 1 if way.dropout else 0
    copies = 0 if gathers_16_bits else again
    of_layer = {
        kind: (
            float(copies * width * sum(inputs * outputs for inputs, outputs in of_kind)),
            float((2 + again) * width * sum(outputs for _, outputs in of_kind)),
        )
        for kind, of_kind in sides.items()
    }
    running = (
        weights + max(constant for constant, _ in of_layer.values()),
        _OUTPUTS * width * max(outputs for _, outputs in pairs) + max(each for _, each in of_layer.values()),
    )
    if stack.gradient_checkpointing != "none":
        return Dora(running, (0.0, 0.0))
    share = 1.0 if some is None else some.share
    kept = [share * sum(modules.layers[kind] * of_layer[kind][column] for kind in of_layer) for column in (0, 1)]
    return Dora(running, (kept[0], kept[1]))


def _paths(modules: AdaptedModules | None, group: str) -> tuple[str, ...]:
    """The modules with adapters of a group."""
    groups: dict[LoraTargets, tuple[str, ...]] = {} if modules is None else modules.groups
    return next((paths for name, paths in groups.items() if name == group), ())
