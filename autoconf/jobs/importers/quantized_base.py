"""What trainers make of a quantized base and of adapters on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoconf.jobs.importers.key_table import Framework


def quantization(facts: Mapping[str, Any], fact: Callable[[str], Any]) -> str | None:
    """How the base is quantized; without double quantization unless a file says so."""
    kind: str | None = facts.get("quantization")
    nested = None if kind else fact("nested")
    return {"yes": "nf4", "no": "nf4_single"}.get(nested) if nested else kind


def upcast(facts: Mapping[str, Any], fact: Callable[[str], Any], computes: str | None) -> str | None:
    """Which parameters of a quantized base become float32.

    Args:
        facts: What files say.
        fact: The same, or the default of the trainer.
        computes: The mixed precision.
    """
    found: str | None = fact("upcast_unquantized")
    return "all" if found == "norms" and not _casts_back(facts, computes) else found


def adapter_dtype(
    facts: Mapping[str, Any],
    fact: Callable[[str], Any],
    framework: Framework | None,
    computes: str | None,
    assumed: list[str],
) -> str | None:
    """The dtype of adapters on a quantized base: PEFT's float32 where an SFTTrainer before TRL 0.22 prepares the base.

    With bf16 it cast embeddings and head back, and adapters only from trl v0.7.5 to v0.8.6 (trl/trainer/utils.py,
    peft_module_casting_to_bf16); float32 holds more, and is assumed of an unknown release.
    """
    default = framework.defaults.get("upcast_unquantized") if framework else None
    prepared = facts.get("upcast_unquantized", default.value if default else None)
    if "adapter_dtype" in facts or (default is None and prepared != "norms"):
        found: str | None = fact("adapter_dtype")
        return found
    if prepared != "norms" or computes != "bf16" or not _casts_back(facts, computes):
        return "float32"
    if facts.get("casts_adapters") == "yes":
        return "bfloat16"
    assumed.append("adapter_dtype = float32 (trl v0.9.6, trl/trainer/utils.py; bfloat16 only from 0.7.5 to 0.8.6)")
    return "float32"


def _casts_back(facts: Mapping[str, Any], computes: str | None) -> bool:
    """Whether SFTTrainer casts all but the norms back: trl v0.15.2, peft_module_casting_to_bf16."""
    return computes not in ("no", "fp16") and facts.get("quantization") != "int8"
