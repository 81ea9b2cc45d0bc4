"""Memory of a quantized base, where it differs from nf4 with double quantization, which was traced.

Its weights and constants follow from the shapes of its modules. What a layer holds in addition while it runs is
bounded from above by the code of the libraries, whose lines are named below; outliers of LLM.int8 depend on the data
and are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from autoconf.jobs.stack import Quantization
from autoconf.memory.profile import Point, Trainable, Units
from autoconf.memory.units import Floats

GROUP = 128  # weights per scale of GPTQ and AWQ checkpoints
_BLOCK = 64  # weights per absmax of bitsandbytes
_OUTSIDE_LAYERS = (
    Point.EMBEDDING, Point.HEAD, Point.TURN, Point.LOSS, Point.HEAD_OVER, Point.TAIL, Point.TAIL_END,
)  # fmt: skip


class QuantizedBase(NamedTuple):
    """Bytes of a quantized base.

    Attributes:
        per_weight: of a quantized weight.
        constants: of scales and zeros.
        layer: that a layer holds in addition to its traced moments while it runs.
        layer_per_token: the same for each token.
        kept: that all layers keep for the backward pass in addition, if they are not recomputed.
        kept_per_token: the same for each token.
        experts: quantized parameters of experts in all layers, of which a model that transformers 5 loads has none.
        layer_experts: those in a layer.
    """

    per_weight: float
    constants: float
    layer: float = 0.0
    layer_per_token: float = 0.0
    kept: float = 0.0
    kept_per_token: float = 0.0
    experts: int = 0
    layer_experts: int = 0

    def units(self, units: Units) -> Units:
        """The parameters of a model with the constants and the experts of this base."""
        constants = round(self.constants)
        if units.absmax_bytes == constants and not self.experts:
            return units
        return replace(
            units,
            absmax_bytes=constants,
            frozen=units.frozen - self.experts,
            quantized=units.quantized + self.experts,
            layer_frozen=units.layer_frozen - self.layer_experts,
            layer_quantized=units.layer_quantized + self.layer_experts,
        )

    def moments(self, profile: Callable[[], Floats], *, recomputes: bool) -> Floats:
        """A traced profile with what this base holds in addition; columns of ``StackMoment``, shape (moments, 9)."""
        if not any((self.layer, self.layer_per_token, self.kept, self.kept_per_token)):
            return profile()
        found = profile().copy()
        inside = ~np.isin(found[:, 0], _OUTSIDE_LAYERS)
        found[inside, 1] += self.layer
        found[inside, 2] += self.layer_per_token
        if not recomputes:
            found[:, 1] += self.kept
            found[:, 2] += self.kept_per_token
        return found


class _Modules(NamedTuple):
    """The quantized linear layers of a model: outputs and inputs of each shape, and how many of it there are."""

    shapes: tuple[tuple[int, int, int], ...]
    layers: int
    hidden: int

    @classmethod
    def of(cls, full: Trainable) -> _Modules:
        layers = max(1, round((full.units.trainable - full.units.root_trainable) / full.units.layer_trainable))
        hidden = next(shape.dimensions[-1] for shape, _ in full.shapes if shape.embedding)
        linear = [
            (shape.dimensions[0], shape.dimensions[1], count)
            for shape, count in full.shapes
            if len(shape.dimensions) == 2 and not shape.embedding and count > 1
        ]
        return cls(tuple(linear), layers, hidden)

    @property
    def inputs(self) -> int:
        """Elements per token of the inputs of a layer's modules: hidden states, and those of other sizes."""
        return 2 * self.hidden + sum({inputs for _, inputs, _ in self.shapes} - {self.hidden})


def quantized_base(kind: Quantization, units: Units, full: Trainable | None, hidden_bytes: int) -> QuantizedBase:
    """The bytes of a base that is quantized in one of the ways.

    Args:
        kind: how it is quantized.
        units: parameters of the model with a quantized base.
        full: all parameters of the model; needed if it is quantized.
        hidden_bytes: bytes of an element of hidden states.
    """
    return _nf4(units) if full is None else _BASES[kind](units, full, hidden_bytes)


def _nf4(units: Units, *_: object) -> QuantizedBase:
    return QuantizedBase(0.5, units.absmax_bytes)


def _nf4_single(units: Units, *_: object) -> QuantizedBase:
    # bitsandbytes/functional.py, quantize_4bit: a float32 absmax for each block, unless compress_statistics.
    return QuantizedBase(0.5, 4 * units.quantized / _BLOCK)


def _nf4_experts(units: Units, full: Trainable, _: int) -> QuantizedBase:
    """nf4 of experts as well, which transformers 4 has as linear layers, and transformers 5 as one tensor of a layer.

    transformers 4.50.3, models/mixtral/modeling_mixtral.py, MixtralSparseMoeBlock, runs one expert after the other, so
    one dequantized matrix is held at a time; traced layers run all experts at once.
    """
    of_layer = sum(shape.elements for shape, _ in full.experts)
    experts = sum(shape.elements * layers for shape, layers in full.experts)
    matrix = min(shape.elements // shape.dimensions[0] for shape, _ in full.experts)  # the other tensor has two in one
    constants = units.absmax_bytes * (units.quantized + experts) / units.quantized
    return QuantizedBase(0.5, constants, layer=2.0 * matrix, experts=experts, layer_experts=of_layer)


def _int8(units: Units, full: Trainable, hidden_bytes: int) -> QuantizedBase:
    """LLM.int8: bitsandbytes/nn/modules.py, Int8Params; autograd/_functions.py, MatMul8bitLt.

    The forward pass makes an int8 copy of the input, from a float16 one (with the absolute values and a mask of
    outliers), and an int32 product (backends/default/ops.py, int8_scaled_mm). It saves its input (``ctx.tensors``)
    although the weight is frozen. The backward pass makes a copy of the weight, as nf4 does.
    """
    modules = _Modules.of(full)
    scales = sum(4 * outputs * count for outputs, _, count in modules.shapes)  # SCB: float32 for each row
    running = max((max(6 * inputs, inputs + 4 * outputs) for outputs, inputs, _ in modules.shapes), default=0)
    kept = hidden_bytes * modules.inputs
    return QuantizedBase(
        1.0, scales, layer_per_token=running + kept, kept_per_token=max(modules.layers - 1, 0) * kept
    )  # fmt: skip


def _packed(*, indices: bool) -> Callable[[Units, Trainable, int], QuantizedBase]:
    """GPTQ and AWQ in GPTQModel's kernels for training: nn_modules/qlinear/torch.py and torch_awq.py, forward.

    A weight is dequantized in the forward pass, through integers of up to 8 bytes a weight in all
    (``dequantize_weight``; utils/packing_utils.py, ``dequantize_gemm``), and a plain product keeps it for the backward
    pass.
    """

    def base(units: Units, full: Trainable, hidden_bytes: int) -> QuantizedBase:
        modules = _Modules.of(full)
        # float16 scales and packed zeros
        constants = sum(2.5 * outputs * math.ceil(inputs / GROUP) * count for outputs, inputs, count in modules.shapes)
        if indices:
            constants += sum(4 * inputs * count for _, inputs, count in modules.shapes)  # g_idx
        largest = max((outputs * inputs for outputs, inputs, _ in modules.shapes), default=0)
        weights = 2.0 * units.layer_quantized
        return QuantizedBase(0.5, constants, layer=weights + 8.0 * largest, kept=2.0 * units.quantized - weights)

    return base


_BASES: dict[str, Callable[[Units, Trainable, int], QuantizedBase]] = {
    "none": _nf4,  # without quantized weights
    "nf4": _nf4,
    "nf4_single": _nf4_single,
    "nf4_experts": _nf4_experts,
    "int8": _int8,
    "gptq": _packed(indices=True),
    "awq": _packed(indices=False),
}
