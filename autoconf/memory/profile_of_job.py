"""Look up the moments of a job's layers and head, without those that its adapters add."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from autoconf.jobs.stack import Stack
from autoconf.memory.adapted import NamedModules
from autoconf.memory.objectives import Setup, joined, with_gradient_of_forward
from autoconf.memory.profile import HeadWay, LayerWay, Trainable
from autoconf.memory.some_layers import SomeLayers
from autoconf.memory.store import ModelsTable
from autoconf.memory.towers import towers
from autoconf.memory.units import Floats, Unsupported
from autoconf.memory.ways import CHUNKS, moments_of_layers


def named_modules(table: ModelsTable, model: str, method: str, stack: Stack) -> NamedModules | None:
    """The modules with adapters that a job names; ``None`` for a group of modules, or without adapters.

    Raises:
        Unsupported: the model does not have them, or it is not known which modules it has.
    """
    if method == "full" or isinstance(stack.lora_targets, str):
        return None
    tower = towers().get(model)
    modules = table.modules(model if tower is None else tower.language_model)
    if modules is None:
        names = ",".join(stack.lora_targets)
        raise Unsupported([f"lora_targets {names!r} of {model}"], ": its modules are not known; give a group of them")
    return modules.named(model, stack.lora_targets)


def of_named(profile: Callable[[], Floats], named: NamedModules, of_group: Trainable, itemsize: int) -> Floats:
    """The moments of a job whose adapters are on named modules; arguments as in ``NamedModules.moments``."""
    return named.moments(profile(), of_group, itemsize)


def profile_of(
    table: ModelsTable,
    model: str,
    method: str,
    stack: Stack,
    layers_as: LayerWay,
    head_as: HeadWay,
    objective: Setup,
    rules: int,
    some: SomeLayers | None,
) -> Callable[[], Floats]:
    """A function that makes the moments of layers and head together, shape (moments, 9).

    Args:
        table: the profiles of models.
        model: a model of the table.
        method: ``full``, ``lora`` or ``qlora``.
        stack: the training stack.
        layers_as: how its layers run.
        head_as: how its head runs.
        objective: what its losses depend on.
        rules: the rules by which memory is composed.
        some: the layers with adapters; ``None`` for all.

    Raises:
        Unsupported: these were not traced.
    """
    layers = moments_of_layers(table, model, stack, layers_as, rules)
    if layers is None:
        raise not_traced(table, model, method, stack, layers_as)
    head = table.moments(model, head_as)
    if head is None:
        raise not_traced(table, model, method, stack, head_as)
    if rules >= CHUNKS and head_as.trains and head_as.loss == "chunked":
        head = with_gradient_of_forward(head)
    # Without checkpointing a layer lacks small tensors that recomputation creates, so checkpointing may seem
    # to need more memory. Its moments are therefore included as well, which adds less than a thousandth.
    also = ("reentrant", "non-reentrant") if layers_as.gradient_checkpointing == "none" else ()
    others = [table.moments(model, layers_as._replace(gradient_checkpointing=one)) for one in also]
    own, *beside = (
        moments if some is None else some.moments(moments) for moments in (layers, *others) if moments is not None
    )
    return partial(joined, objective, own, beside, head)


def not_traced(
    table: ModelsTable, model: str, method: str, stack: Stack, key: LayerWay | HeadWay | tuple[str, str]
) -> Unsupported:
    """The error that names the settings without a profile, and the reason."""
    named = key._asdict() if isinstance(key, (LayerWay, HeadWay)) else {"lora_targets": key[1]}
    about = [f"{name} {getattr(stack, name)!r}" for name in named if hasattr(stack, name)]
    if named.get("dropout"):
        about.append(f"lora_dropout {stack.lora_dropout:g}")
    settings = f"method {method!r} of {model} with {', '.join(about)}"
    return Unsupported([settings], f": {table.problem(model, key) or 'it was not traced'}")
