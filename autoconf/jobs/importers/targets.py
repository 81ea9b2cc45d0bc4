"""The modules with adapters of axolotl, which come from two keys."""

from __future__ import annotations

from collections.abc import Sequence

from autoconf.jobs.importers.key_table import Setting, text

_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def with_union_of_targets(found: Sequence[Setting]) -> tuple[list[Setting], list[str]]:
    """Settings without modules that ``lora_target_linear`` includes, and a sentence for each of these.

    axolotl trains the union of both (v0.18.0, src/axolotl/loaders/adapter.py, load_lora).

    >>> from autoconf.jobs.importers.key_table import Place
    >>> keys = {"lora_target_linear": True, "lora_target_modules": ["q_proj"]}
    >>> settings = [Setting(Place("a.yaml", None, key), "axolotl", key, value) for key, value in keys.items()]
    >>> with_union_of_targets(settings)[1]
    ["a.yaml lora_target_modules: ['q_proj'] are among the linear layers of lora_target_linear"]
    """
    own = [setting for setting in found if setting.dialect == "axolotl"]
    if not any(setting.key == "lora_target_linear" and text(setting.value) == "true" for setting in own):
        return [*found], []
    included = [setting for setting in own if setting.key == "lora_target_modules" and _is_linear(setting.value)]
    notes = [f"{s.place}: {s.value} are among the linear layers of lora_target_linear" for s in included]
    return [setting for setting in found if setting not in included], notes


def _is_linear(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v in _LINEAR for v in value)
