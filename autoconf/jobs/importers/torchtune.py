"""Read a recipe of torchtune, which names models, optimizers and losses by the code that makes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autoconf.jobs.importers.key_table import Place, Setting, settings

_COMPONENT = "_component_"
_BUILDER = re.compile(r"torchtune\.models\.(\w+)\.(q?lora_)?(\w+)")
_SECTIONS = ("model", "optimizer", "loss")
_TARGETS = ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output")
# Keys that are read together with the classes and functions of their sections.
OF_COMPONENTS = (*_SECTIONS, *(f"model.{key}" for key in _TARGETS), "optimizer.fused")
_OF_MLP = ["gate_proj", "up_proj", "down_proj"]  # w1, w3 and w2 there


def recipe_settings(recipe: Mapping[str, Any], place: Callable[[str], Place]) -> Iterator[Setting]:
    """The settings of a recipe.

    Args:
        recipe: The recipe.
        place: The place of a dotted key.

    >>> model = {"_component_": "torchtune.models.llama3_1.lora_llama3_1_8b", "lora_attn_modules": ["q_proj", "v_proj"]}
    >>> [(s.key, s.value) for s in recipe_settings({"model": model}, lambda key: Place("recipe.yaml", None, key))]
    [('model_name', 'llama3.1-8b'), ('kind', 'lora'), ('targets', ['q_proj', 'v_proj'])]
    """
    sections = {name: recipe[name] for name in _SECTIONS if isinstance(recipe.get(name), Mapping)}
    rest = {key: value for key, value in recipe.items() if key not in sections}
    for name, section in sections.items():
        component = str(section.get(_COMPONENT, ""))
        where = place(f"{name}.{_COMPONENT}")
        if name == "model":
            yield from _model(component, section, where, place)
        elif name == "optimizer":
            fused = "_fused" if section.get("fused") is True else ""
            yield Setting(where, "torchtune", "optimizer", f"{component}{fused}")
        else:
            yield Setting(where, "torchtune", "loss", component)
        if left := {key: value for key, value in section.items() if key not in (_COMPONENT, "fused", *_TARGETS)}:
            rest[name] = left
    yield from settings("torchtune", rest, place)


def _model(
    component: str, section: Mapping[str, Any], where: Place, place: Callable[[str], Place]
) -> Iterator[Setting]:
    found = _BUILDER.fullmatch(component)
    family, adapters, builder = (found[1], found[2] or "", found[3]) if found else ("", "", "")
    if not family or not builder.startswith(f"{family}_"):
        yield Setting(where, "torchtune", "model_component", component)
        return
    size = re.sub(r"(?<=\d)_(?=\d)", ".", builder.removeprefix(f"{family}_")).replace("_", "-")
    yield Setting(where, "torchtune", "model_name", f"{family.replace('_', '.')}-{size}")
    yield Setting(where, "torchtune", "kind", adapters.removesuffix("_") or "full")
    if "lora_attn_modules" in section:
        yield Setting(place("model.lora_attn_modules"), "torchtune", "targets", adapter_targets(section))


def adapter_targets(section: Mapping[str, Any]) -> list[str]:
    """The modules with adapters, by the names of transformers.

    >>> adapter_targets({"lora_attn_modules": ["q_proj", "output_proj"], "apply_lora_to_output": True})
    ['q_proj', 'o_proj', 'output']
    """
    attention = section["lora_attn_modules"]
    named = [str(m).replace("output_proj", "o_proj") for m in attention] if isinstance(attention, list) else []
    mlp = _OF_MLP if section.get("apply_lora_to_mlp") is True else []
    head = ["output"] if section.get("apply_lora_to_output") is True else []
    return [*named, *mlp, *head]
