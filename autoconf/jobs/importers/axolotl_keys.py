"""Keys of axolotl that decide together: the modules with adapters, and the precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Setting, text

# Modules that are linear layers in transformers 5.23.0: of models/llama, gpt_neox, falcon and phi3.
_LINEAR = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "query_key_value", "dense",
    "dense_h_to_4h", "dense_4h_to_h", "qkv_proj", "gate_up_proj",
}  # fmt: skip


def together(found: Sequence[Setting], options: Mapping[str, Any]) -> tuple[list[Setting], list[str]]:
    """Settings without those that other keys overrule or include, and a sentence for each of these.

    Args:
        found: The settings of a job.
        options: Fields given by options.

    Raises:
        BadInput: Modules get adapters besides all linear layers.

    >>> from autoconf.jobs.importers.key_table import Place
    >>> keys = {"lora_target_linear": True, "lora_target_modules": ["q_proj"], "bf16": "auto", "fp16": True}
    >>> settings = [Setting(Place("a.yaml", None, key), "axolotl", key, value) for key, value in keys.items()]
    >>> for sentence in together(settings, {})[1]:
    ...     print(sentence)
    a.yaml lora_target_modules: ['q_proj'] are among the linear layers of lora_target_linear
    a.yaml bf16: fp16 overrules it
    """
    own = {setting.key: setting for setting in found if setting.dialect == "axolotl"}
    notes = {**_of_targets(own, options), **_of_precision(own)}
    return [s for s in found if s.dialect != "axolotl" or s.key not in notes], list(notes.values())


def _of_targets(own: Mapping[str, Setting], options: Mapping[str, Any]) -> dict[str, str]:
    """The union of both keys: axolotl v0.18.0, src/axolotl/loaders/adapter.py, load_lora."""
    modules = own.get("lora_target_modules")
    if modules is None or not _is(own, "lora_target_linear", "true") or "lora_targets" in options:
        return {}
    if not isinstance(modules.value, list) or not modules.value:
        return {}
    if others := [str(module) for module in modules.value if module not in _LINEAR]:
        raise BadInput(
            f"{modules.place}: {shortened(', '.join(others))}: lora_target_linear adds all linear layers to these, and "
            "adapters on both are not covered; or give --lora-targets"
        )
    return {modules.key: f"{modules.place}: {modules.value} are among the linear layers of lora_target_linear"}


def _of_precision(own: Mapping[str, Setting]) -> dict[str, str]:
    """The one of bf16 and fp16 that holds: axolotl v0.18.0, src/axolotl/utils/config/__init__.py, resolve_dtype."""
    half = next((key for key in ("fp16", "float16") if _is(own, key, "true")), None)
    if half is None or "bf16" not in own:
        return {}
    overruled, by = (half, "bf16") if half == "fp16" and _is(own, "bf16", "true", "full") else ("bf16", half)
    return {overruled: f"{own[overruled].place}: {by} overrules it"}


def _is(own: Mapping[str, Setting], key: str, *values: str) -> bool:
    return key in own and text(own[key].value) in values
