"""Vision-language checkpoints: a language model with known figures, and a frozen tower beside it.

The tower runs before the language model. With gradient checkpointing its weights get no gradients, but its inputs do:
since transformers 5.0, modeling_utils.py, enable_input_require_grads, has a hook on the embeddings of every part of a
model. So the tower keeps the inputs of its blocks, and has a backward pass after that of the language model.
LLaMA-Factory v0.9.5, model_utils/checkpointing.py, _gradient_checkpointing_enable, has no such hook, and leaves out the
checkpoints of modules without trained parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoconf.jobs.stack import Stack
from autoconf.memory.profile import LayerWay, Point, TowerUnits, Trainable
from autoconf.memory.units import Floats

TABLE = Path(__file__).with_name("towers.json")
_ACTIVATIONS, _GRADIENTS = slice(1, 3), slice(5, 9)  # columns of moments: bytes and bytes per token; gradients
_BEFORE_HEAD = (Point.EMBEDDING, Point.FIRST_GATHER, Point.GATHER, Point.FORWARD)


class TowerWay(NamedTuple):
    """The settings of a stack that change the memory of a frozen tower."""

    method: str
    torch_dtype: str
    mixed_precision: str
    gradient_checkpointing: str

    @classmethod
    def of(cls, layers: LayerWay, stack: Stack | None = None) -> TowerWay:
        """The way of the tower of a model whose layers run in a way, and its stack may leave it out."""
        found = cls(*(getattr(layers, field) for field in cls._fields))
        return found._replace(gradient_checkpointing="none") if stack and stack.tower_apart else found


class Held(NamedTuple):
    """Bytes that are alive at a point: ``constant + per_token * tokens + per_image_token * image tokens``."""

    point: Point
    constant: float
    per_token: float
    per_image_token: float


@dataclass(frozen=True)
class Tower:
    """A frozen tower, and the checkpoint that it belongs to.

    Attributes:
        language_model: the model whose shapes the checkpoint's language model has.
        aliases: names of the checkpoint.
        parameters: all parameters of the tower.
        blocks: its blocks, which are equal.
        block: parameters of a block.
        block_linear: those that a 4-bit base quantizes.
        linear: those that a 4-bit base quantizes.
        absmax_bytes: constants of the quantized ones.
        buffer_bytes: buffers.
        modules: names of its linear layers, as PEFT finds them.
        pixel_bytes: inputs for each image token.
        ways: what it holds at points of a micro-batch in addition to the language model: at ``EMBEDDING``,
            ``FIRST_END`` and ``TAIL`` all that is alive while the tower runs; at ``FORWARD``, ``LOSS`` and ``TAIL_END``
            what it keeps while the language model runs, before its head, from there on, and at the end.
    """

    language_model: str
    aliases: tuple[str, ...]
    parameters: int
    blocks: int
    block: int
    block_linear: int
    linear: int
    absmax_bytes: int
    buffer_bytes: int
    modules: tuple[str, ...]
    pixel_bytes: float
    ways: dict[TowerWay, tuple[Held, ...]]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Tower:
        """The tower that ``to_json`` wrote."""
        ways = {
            TowerWay(*text.split(" ")): tuple(Held(Point(point), *sizes) for point, *sizes in rows)
            for text, rows in found["ways"].items()
        }
        lists = {name: tuple(found[name]) for name in ("aliases", "modules")}
        return cls(**{**found, **lists, "ways": ways})

    def to_json(self) -> dict[str, Any]:
        """The tower as JSON has it."""
        ways = {" ".join(way): [[int(point), *sizes] for point, *sizes in rows] for way, rows in self.ways.items()}
        return {**vars(self), "ways": ways}

    def with_language_model(
        self, trainable: Trainable, loaded: Trainable, *, quantized: bool
    ) -> tuple[Trainable, Trainable]:
        """The parameters of the checkpoint, of which no decoder layer has those of the tower.

        Args:
            trainable: those of the language model, of which some are trained.
            loaded: those of the language model, as they are loaded.
            quantized: whether linear layers are quantized, which transformers does with all but the head.
        """
        packed = self.linear if quantized else 0
        frozen = self.parameters - packed
        units = replace(
            trainable.units,
            frozen=trainable.units.frozen + frozen,
            root_frozen=trainable.units.root_frozen + frozen,
            quantized=trainable.units.quantized + packed,
            absmax_bytes=trainable.units.absmax_bytes + (self.absmax_bytes if quantized else 0),
            buffer_bytes=trainable.units.buffer_bytes + self.buffer_bytes,
        )
        of_loaded = replace(loaded.units, trainable=loaded.units.trainable + self.parameters)
        return trainable._replace(units=units), loaded._replace(units=of_loaded)

    def units(self, stack: Stack, *, quantized: bool) -> TowerUnits:
        """What the tower changes in a job."""
        linear = self.blocks * self.block_linear if quantized else 0
        outside = self.linear - linear if quantized else 0
        return TowerUnits(self.blocks * self.block - linear, outside, self.pixels(stack))

    def with_images(
        self, profile: Callable[[], Floats], layers: LayerWay, stack: Stack, itemsizes: tuple[int, float], strategy: str
    ) -> Callable[[], Floats]:
        """A function that makes the moments of a micro-batch with images, given one for the language model.

        Args:
            profile: makes moments with the columns of ``StackMoment``, shape (moments, 9).
            layers: how the layers of the language model run.
            stack: the training stack.
            itemsizes: bytes of a frozen parameter in the dtype of computation, and of a quantized one.
            strategy: how the GPUs share the job.
        """
        packed = self.block_linear if stack.quantization != "none" else 0
        block = (self.block - packed) * itemsizes[0] + packed * itemsizes[1]
        way = TowerWay.of(layers, stack)
        gathered = _BLOCKS.get(strategy, 0) * block
        return partial(self._moments, profile, way, stack, gathered) if stack.image_share else profile

    def _moments(self, profile: Callable[[], Floats], way: TowerWay, stack: Stack, gathered: float) -> Floats:
        found, share = profile().copy(), stack.image_share
        held = {point: [row for row in self.ways[way] if row.point == point] for point in Point}
        rows = [self._rows(held[point], point, found, share, gathered) for point in _WHOLE if held[point]]
        forward, over, end = (_activations(held[point][0], share) for point in _KEPT)
        points = found[:, 0]
        before, after = np.isin(points, _BEFORE_HEAD), points == Point.TAIL_END
        found[before, _ACTIVATIONS] += forward
        found[after, _ACTIVATIONS] += end
        found[~before & ~after, _ACTIVATIONS] += over
        found[points == Point.FIRST_GATHER, 0] = Point.TOWER_OVER
        found = np.concatenate([found, *rows])
        found[:, 2] += self.pixels(stack)
        return found

    @staticmethod
    def _rows(held: Iterable[Held], point: Point, profile: Floats, share: float, gathered: float) -> Floats:
        """The moments of a tower's passes, while no decoder layer has gradients that are not finished."""
        like = profile[profile[:, 0] == (Point.TAIL_END if point == Point.TAIL else point), _GRADIENTS]
        layer, newest, finished, root = like.max(axis=0, initial=0.0)
        if point == Point.FIRST_END:
            layer, newest, finished = 0.0, 0.0, finished + layer
        rows = []
        for one in held:
            constant, per_token = _activations(one, share)
            rows.append([_POINTS[point], constant + gathered, per_token, 0, 0, layer, newest, finished, root])
        return np.array(rows)

    def pixels(self, stack: Stack) -> float:
        """Bytes of pixels for each token.

        transformers 5.23, trainer.py, get_batch_samples: the inputs of all micro-batches of a step are collected first.
        """
        return self.pixel_bytes * stack.image_share * stack.micro_batches


_WHOLE = (Point.EMBEDDING, Point.FIRST_END, Point.TAIL)
_KEPT = (Point.FORWARD, Point.LOSS, Point.TAIL_END)
# Where a tower runs. Before its first block FSDP2 has the root twice, as at ``TURN``, when more is alive.
_POINTS = {Point.EMBEDDING: Point.TOWER, Point.FIRST_END: Point.TAIL, Point.TAIL: Point.TAIL}
_BLOCKS = {"fsdp1": 2, "fsdp2": 3}  # copies of a block


def _activations(held: Held, share: float) -> Floats:
    return np.array([held.constant, held.per_token + share * held.per_image_token])


@cache
def towers() -> dict[str, Tower]:
    """The checkpoints with a tower, by name.

    >>> towers()["qwen2.5-vl-7b"].language_model
    'qwen2.5-7b'
    """
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Tower.from_json(of) for name, of in found.items()}
