"""The linear layers of a model that can have LoRA adapters, and jobs that name some of them.

Adapters of named modules are counted exactly, from their shapes. What layers hold for them was traced for groups of
modules only, so it is that of the smallest group with all of the named modules: an upper bound, because a layer with
fewer adapters holds fewer tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from autoconf.jobs.stack import LoraTargets
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import Point, StackMoment, Trainable
from autoconf.memory.units import Floats, Unsupported

# The modules of the models of version 3.0.0, whose own files do not have them.
OF_RELEASED = Path(__file__).with_name("adapted_modules.json")
_LAYER, _NEWEST, _FINISHED = map(
    StackMoment._fields.index, ("layer_gradients", "newest_gradient", "finished_gradients")
)


@dataclass(frozen=True)
class AdaptedModules:
    """The modules of a model that PEFT's ``all-linear`` adapts, by the kind of decoder layer.

    Attributes:
        layers: number of layers of each kind.
        largest: kind of the layer with most parameters.
        modules: inputs and outputs of each linear layer, by kind and by its path in the layer.
        groups: paths with adapters of each group of ``LoraTargets``; also those of adapters that are not on linear
            layers, such as adapters of experts.
    """

    layers: dict[str, int]
    largest: str
    modules: dict[str, dict[str, tuple[int, int]]]
    groups: dict[LoraTargets, tuple[str, ...]]

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The modules that ``to_json`` wrote."""
        modules = {kind: {path: (i, o) for path, (i, o) in of.items()} for kind, of in found["modules"].items()}
        groups = {group: tuple(paths) for group, paths in found["groups"].items()}
        return cls(found["layers"], found["largest"], modules, groups)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def paths(self) -> list[str]:
        """The paths of all linear layers that can have adapters."""
        return [*dict.fromkeys(path for of_kind in self.modules.values() for path in of_kind)]

    def named(self, model: str, names: Iterable[str]) -> NamedModules:
        """The modules that a list names: by their path, or by the end of it, as PEFT finds them.

        Args:
            model: the name of the model in the error message.
            names: names of modules.

        Raises:
            Unsupported: the model has no such module, or no group was traced with all of them.

        >>> mistral = modules_of_released("mistral-7b-v0.1")
        >>> mistral.named("mistral-7b-v0.1", ["q_proj", "self_attn.o_proj"]).paths
        ('self_attn.q_proj', 'self_attn.o_proj')
        """
        unknown = [name for name in names if not any(_is_named(path, name) for path in self.paths)]
        if unknown:
            known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in self.paths))
            raise Unsupported(
                [f"lora_targets {','.join(unknown)!r} of {model}"], f": its modules that can have adapters are {known}"
            )
        paths = tuple(path for path in self.paths if any(_is_named(path, name) for name in names))
        groups = [group for group, of_group in self.groups.items() if set(paths) <= set(of_group)]
        if not groups:
            raise Unsupported([f"lora_targets {','.join(names)!r} of {model}"], ": it was not traced")
        return NamedModules(self, paths, min(groups, key=lambda group: len(self.groups[group])))


def _is_named(path: str, name: str) -> bool:
    """Whether PEFT finds a module by a name (peft/tuners/tuners_utils.py, check_target_module_exists)."""
    return path == name or path.endswith(f".{name}")


@dataclass(frozen=True)
class NamedModules:
    """Modules with adapters that a job names, and the smallest group that has all of them."""

    of_model: AdaptedModules
    paths: tuple[str, ...]
    group: LoraTargets

    @property
    def is_group(self) -> bool:
        """Whether these are all modules of the group."""
        return len(self.paths) == len(self.of_model.groups[self.group])

    def parameters_of(self, kind: str) -> int:
        """Parameters of the adapters of a layer, per rank."""
        return sum(sum(self.of_model.modules[kind].get(path, ())) for path in self.paths)

    def trainable(self, of_group: Trainable) -> Trainable:
        """The adapters of the modules, given those of the group; per rank."""
        shapes: dict[Shape, int] = {}
        for kind, count in self.of_model.layers.items():
            modules = self.of_model.modules[kind]
            for inputs, outputs in (modules[path] for path in self.paths if path in modules):
                for dimensions in ((1, inputs), (outputs, 1)):
                    shape = Shape(dimensions, 1)
                    shapes[shape] = shapes.get(shape, 0) + count
        units = replace(
            of_group.units,
            trainable=sum(count * self.parameters_of(kind) for kind, count in self.of_model.layers.items()),
            layer_trainable=self.parameters_of(self.of_model.largest),
        )
        return Trainable(units, tuple(shapes.items()))

    def moments(self, of_group: Floats, trainable: Trainable, itemsize: int) -> Floats:
        """The moments of layers with adapters of the group, with the gradients of these modules only.

        Args:
            of_group: moments with the columns of ``StackMoment``, shape (moments, 9).
            trainable: the adapters of the group.
            itemsize: bytes of an element of a gradient.
        """
        modules = self.of_model.modules.values()
        largest = max(side for of_kind in modules for path in self.paths for side in of_kind.get(path, ()))
        moments = of_group.copy()
        of_layers = moments[:, 0] != Point.LOSS  # whose gradients are those of the head
        for column, most in ((_LAYER, max(map(self.parameters_of, self.of_model.layers))), (_NEWEST, largest)):
            moments[of_layers, column] = np.minimum(moments[of_layers, column], most * itemsize)
        moments[:, _FINISHED] *= self._share(trainable)
        return moments

    def _share(self, of_group: Trainable) -> float:
        """The largest part of any layer's gradients, with adapters of the group, that are those of the modules."""
        group = replace(self, paths=tuple(self.of_model.groups[self.group]))
        if len(self.of_model.layers) == 1:
            return self.trainable(of_group).units.trainable / of_group.units.trainable
        if not set(group.paths) <= set(self.of_model.paths):
            return 1.0
        return max(
            self.parameters_of(kind) / group.parameters_of(kind)
            for kind in self.of_model.layers
            if group.parameters_of(kind)
        )


@cache
def _of_released() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OF_RELEASED.read_text(encoding="utf-8"))
    return found


def modules_of_released(model: str) -> AdaptedModules | None:
    """The modules of a model of the released versions."""
    found = _of_released().get(model)
    return None if found is None else AdaptedModules.from_json(found)
