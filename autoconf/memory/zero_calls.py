"""The calls of modules in a micro-batch, as DeepSpeed's ZeRO-3 sees them: the parameters of each, and when it ends.

Source: DeepSpeed 0.19.8, runtime/zero/parameter_offload.py, whose hooks run before and after the forward and the
backward pass of every module. All sizes are numbers of elements.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from autoconf.memory.optimizers import Shape


class Module(NamedTuple):
    """The parameters of a module, and the two matrices of its adapter, if it has one."""

    own: tuple[int, ...]
    adapter: tuple[int, int] | None = None


class Layer(NamedTuple):
    """The modules of a decoder layer that have parameters, in the order of their calls."""

    attention: tuple[Module, ...]
    mlp: tuple[Module, ...]


class ModelCalls(NamedTuple):
    """The modules of a model that have parameters, in the order of their calls; a tied head is empty."""

    embeddings: tuple[int, ...]
    layers: tuple[Layer, ...]
    norm: tuple[int, ...]
    head: tuple[int, ...]

    def sizes(self) -> Iterator[int]:
        """The sizes of all parameters."""
        yield from (*self.embeddings, *self.norm, *self.head)
        for attention, mlp in self.layers:
            for own, adapter in (*attention, *mlp):
                yield from (*own, *(adapter or ()))


@lru_cache(maxsize=1024)  # jobs of a table share models
def model_calls(
    shapes: tuple[tuple[Shape, int], ...],
    layers: int,
    adapters: tuple[tuple[Shape, int], ...] = (),
    rank: int = 0,
    *,
    quantized: bool = False,
) -> ModelCalls:
    """The calls of a model whose shapes of parameters are known; their order is that of most decoder layers.

    Args:
        shapes: shapes of parameters, each with the number of parameters that have it.
        layers: number of decoder layers, >= 1.
        adapters: shapes of adapters of rank 1, likewise.
        rank: rank of the adapters.
        quantized: whether matrices of layers (but not experts in one tensor) have 4 bits and are stored in bfloat16.

    >>> shapes = (Shape((16, 4), 2, True), 1), (Shape((4, 4), 2), 8), (Shape((4,), 2), 5), (Shape((16, 4), 2), 1)
    >>> model = model_calls(shapes, layers=2)
    >>> model.layers[0].attention
    (Module(own=(4,), adapter=None), Module(own=(16,), adapter=None), Module(own=(16,), adapter=None))
    >>> model.norm, model.head
    ((4,), (64,))
    """
    embeddings: list[int] = []
    norm: list[int] = []
    head: list[int] = []
    of_layers: list[list[Shape]] = [[] for _ in range(layers)]
    for shape, count in shapes:
        if shape.embedding:
            embeddings += [shape.elements] * count
        elif count < layers:
            head += [shape.elements] * count
        else:
            if len(shape.dimensions) == 1 and count % layers == 1:
                norm, count = [shape.elements], count - 1
            for index, of_layer in enumerate(of_layers):
                of_layer += [shape] * _share(count, index, layers)
    found = [
        _layer(of_layer, [(a, _share(count, index, layers)) for a, count in adapters], rank, quantized=quantized)
        for index, of_layer in enumerate(of_layers)
    ]
    return ModelCalls(tuple(embeddings), tuple(found), tuple(norm), tuple(head))


def _share(count: int, index: int, layers: int) -> int:
    """How many of so many parameters a layer has."""
    return (count * (index + 1)) // layers - (count * index) // layers


def _layer(shapes: Sequence[Shape], adapters: Sequence[tuple[Shape, int]], rank: int, *, quantized: bool) -> Layer:
    vectors = [shape.elements for shape in shapes if len(shape.dimensions) == 1]
    matrices = [shape for shape in shapes if len(shape.dimensions) == 2]
    experts = tuple(shape.elements for shape in shapes if len(shape.dimensions) > 2)
    if len(matrices) > 2 and matrices[0] == matrices[1] != matrices[2]:
        matrices.insert((len(matrices) + 1) // 2 - 1, matrices.pop(1))  # the output follows keys and values
    left = Counter({shape.dimensions: count for shape, count in adapters})
    modules = [_linear(shape, left, rank, quantized=quantized) for shape in matrices]
    others = tuple(rank * Shape(dimensions, 2).elements for dimensions in left.elements())  # adapters of experts
    half = (len(modules) + 1) // 2
    norms = [Module((size,)) for size in vectors[:2]]
    if vectors[2:]:
        modules[0] = modules[0]._replace(own=(*modules[0].own, *vectors[2:]))
    rest = [Module((*experts, *others))] if experts or others else []
    return Layer((*norms[:1], *modules[:half]), (*norms[1:], *modules[half:], *rest))


def _linear(shape: Shape, left: Counter[tuple[int, ...]], rank: int, *, quantized: bool) -> Module:
    """A linear layer, with an adapter of its sizes if one is left."""
    outputs, inputs = shape.dimensions
    own = (shape.elements // 4 if quantized else shape.elements,)
    first, second = (1, inputs), (outputs, 1)
    if not (left[first] and left[second]):
        return Module(own)
    left[first] -= 1
    left[second] -= 1
    return Module(own, (rank * inputs, rank * outputs))


class Step(NamedTuple):
    """A call of a module, or its end.

    Attributes:
        parameters: those that the call fetches, or that the end may release.
        ends: whether it is an end.
        releases: whether the end releases the parameters even if they are used again soon.
    """

    parameters: tuple[int, ...] = ()
    ends: bool = False
    releases: bool = False


class Segment(NamedTuple):
    """Steps of a part of a micro-batch, a key of ``zero_coordinator.PARTS``; parameters are counted from ``first``."""

    part: str
    first: int
    steps: tuple[Step, ...]


# The modules of the two halves of a layer: the number of parameters of each, and whether it has an adapter.
_Halves: TypeAlias = tuple[tuple[tuple[int, bool], ...], ...]


def micro_batch(model: ModelCalls, checkpointing: str) -> list[Segment]:
    """The calls and ends of a micro-batch, with parameters in the order of ``model.sizes()``.

    Args:
        model: the modules; if any has an adapter, their own parameters are frozen.
        checkpointing: ``none``, ``reentrant``, or any other kind, which recomputes a layer when the backward pass needs
            the first tensor of it.

    >>> model = ModelCalls((8,), (Layer((Module((4,)),), (Module((6,)),)),), norm=(), head=())
    >>> calls = [(s.first, step) for s in micro_batch(model, "none") for step in s.steps if not step.ends]
    >>> [first + number for first, step in calls for number in step.parameters]
    [0, 1, 2, 0, 0, 2, 1, 0]
    """
    frozen = any(module.adapter for layer in model.layers for half in layer for module in half)
    containers = 3 if frozen else 1  # the model in its causal language model; PEFT's two around them
    embeddings = range(len(model.embeddings))
    norm = range(embeddings.stop, embeddings.stop + len(model.norm))
    head = range(norm.stop, norm.stop + len(model.head))
    layers, first = [], head.stop
    for layer in model.layers:
        halves = tuple(tuple((len(own), adapter is not None) for own, adapter in half) for half in layer)
        layers.append((first, halves))
        first += sum(own + 2 * adapts for half in halves for own, adapts in half)
    last = len(layers) - 1
    parts = ["last" if index == last else "first" if index == 0 else "middle" for index in range(len(layers))]
    return [
        Segment("forward", 0, _root(embeddings, before=containers + 1, after=1)),  # rotary embeddings
        *(Segment("forward", first, _forward_layer(halves)) for first, halves in layers),
        Segment("forward", 0, _root(norm)),
        Segment("head", 0, _root(head or embeddings[:1], after=containers)),
        Segment("loss", 0, (*_root((head or embeddings[:1])[::-1], after=1), *_root(norm))),
        *(
            Segment(part, first, _backward_layer(halves, checkpointing, frozen=frozen))
            for part, (first, halves) in zip(reversed(parts), reversed(layers), strict=True)
        ),
        Segment("tail", 0, _root(embeddings)),
    ]


def _root(parameters: Iterable[int], before: int = 0, after: int = 0) -> tuple[Step, ...]:
    """Modules outside of layers, with a parameter each, between calls without parameters; alike in both passes."""
    steps = (step for number in parameters for step in (Step((number,)), Step((number,), ends=True)))
    return (*[Step()] * before, *steps, *[Step()] * after)


@lru_cache(maxsize=256)  # most layers of a model, and those of many models, have the same modules
def _forward_layer(halves: _Halves) -> tuple[Step, ...]:
    program = _Program("none", frozen=False)
    program.containers(1)
    program.forward_layer(_numbered(halves))
    return tuple(program.steps)


@lru_cache(maxsize=1024)
def _backward_layer(halves: _Halves, checkpointing: str, *, frozen: bool) -> tuple[Step, ...]:
    program = _Program(checkpointing, frozen=frozen)
    program.backward_layer(_numbered(halves))
    return tuple(program.steps)


class _Numbered(NamedTuple):
    """A module by the numbers of its parameters."""

    own: tuple[int, ...]
    adapter: tuple[tuple[int], tuple[int]] | None


def _numbered(halves: _Halves) -> list[list[_Numbered]]:
    numbers = itertools.count()

    def module(own: int, adapts: bool) -> _Numbered:
        of_own = tuple(itertools.islice(numbers, own))
        return _Numbered(of_own, ((next(numbers),), (next(numbers),)) if adapts else None)

    return [[module(*each) for each in half] for half in halves]


class _Program:
    """Collects the steps of a layer.

    Args:
        checkpointing: as in ``micro_batch``.
        frozen: whether modules with and without adapters are frozen.
    """

    def __init__(self, checkpointing: str, *, frozen: bool) -> None:
        self.checkpointing, self.frozen = checkpointing, frozen
        self.steps: list[Step] = []
        self._held = False  # whether frozen parameters live to the end of a module of the backward pass

    def containers(self, count: int) -> None:
        self.steps += [Step()] * count

    def _call(self, parameters: tuple[int, ...]) -> None:
        self.steps.append(Step(parameters))

    def _end(self, parameters: tuple[int, ...], *, releases: bool = False) -> None:
        self.steps.append(Step(parameters, ends=True, releases=releases))

    def _end_own(self, module: _Numbered) -> None:
        if not self._held:
            self._end(module.own)

    def forward(self, module: _Numbered) -> None:
        if module.adapter is None:
            self._call(module.own)
            self._end_own(module)
            return
        first, second = module.adapter
        # PEFT's layer reads its first matrix, which is an external parameter of it (ZeROOrderedDict).
        self._call(first)
        self._call(module.own)
        self._end_own(module)
        self.containers(1)  # dropout
        self._call(first)
        self._call(second)
        self._end(second)
        self._end(first)

    def backward(self, module: _Numbered, recomputed: Sequence[Sequence[_Numbered]] = ()) -> None:
        """A module; the layer that is recomputed in it, if any, holds frozen parameters to the end of it."""
        if module.adapter is None:
            self._call(module.own)
            self._recompute(recomputed)
            self._end_own(module)
            self._end_frozen(recomputed)
            return
        first, second = module.adapter
        self._call(first)
        self._call(second)
        self._recompute(recomputed)
        self._end(second)
        self._end_frozen(recomputed)
        self._call(first)
        self.containers(1)
        self._call(module.own)
        self._end_own(module)
        self._end(first)

    def forward_layer(self, halves: Sequence[Sequence[_Numbered]]) -> None:
        attention, mlp = halves
        self.containers(1)
        for module in attention:
            self.forward(module)
        self.containers(1)
        for index, module in enumerate(mlp):
            self.containers(1 if index == 2 else 0)  # the activation function follows the norm and the first matrix
            self.forward(module)

    def backward_layer(self, halves: Sequence[Sequence[_Numbered]]) -> None:
        attention, mlp = halves
        self.containers(1)
        within: Sequence[Sequence[_Numbered]] = ()
        if self.checkpointing == "reentrant":
            self._recompute(halves)
            self._held = self.frozen
        elif self.checkpointing != "none":
            within = halves
        self.containers(1)
        for index in range(len(mlp) - 1, -1, -1):
            self.backward(mlp[index], within)
            self.containers(1 if index == 2 else 0)
            within = ()
        self.containers(1)
        for module in reversed(attention):
            self.backward(module)
        if self.checkpointing == "reentrant":
            self._end_frozen(halves)

    def _recompute(self, halves: Sequence[Sequence[_Numbered]]) -> None:
        # partitioned_param_coordinator.py, update_recompute_parameters
        if halves:
            self._held = self.frozen
            self.forward_layer(halves)

    def _end_frozen(self, halves: Sequence[Sequence[_Numbered]]) -> None:
        if halves:
            self._held = False
        if halves and self.frozen:
            self._end(tuple(number for half in halves for module in half for number in module.own), releases=True)
