"""Gradient checkpointing that files state: by the Trainer or by FSDP, of which kind, and where inputs of layers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Framework, job_keys
from autoconf.jobs.names import key


def checkpointing(
    facts: Mapping[str, Any],
    fact: Callable[[str], Any],
    framework: Framework | None,
    assumed: list[str],
    *,
    trains_all: bool,
    stack: str | None,
) -> str | None:
    """The value of ``gradient_checkpointing``; ``None`` if the preset decides.

    Args:
        facts: The facts of the files.
        fact: Gives a fact of the files, or else the framework's default.
        framework: The framework of the files.
        assumed: To which an assumption is added.
        trains_all: Whether all parameters are trained.
        stack: The stack that an option names.

    Raises:
        BadInput: The settings exclude each other, or inputs of layers are offloaded in a way that is not covered.
    """
    kind = _kind(facts, fact, framework)
    where = facts.get("inputs_on_host")
    if where == "unsloth" and stack not in (None, "unsloth"):
        assumed.append("activations that unsloth keeps on the CPU are counted on the GPU")
        return kind
    if where is None:
        return kind
    if kind == "none":
        # trl v1.9.0, trl/models/activation_offloading.py: all tensors of a layer move to the host then.
        raise BadInput("gradient_checkpointing: offload of activations is covered with checkpoints only; turn them on")
    if kind == "reentrant":
        raise BadInput("gradient_checkpointing: offload of activations is not covered with reentrant checkpoints")
    if where == "full" and not trains_all:
        # axolotl v0.18.0, src/axolotl/loaders/model.py, _apply_activation_checkpointing.
        raise BadInput(
            "gradient_checkpointing: with adapters axolotl offloads all activations instead of recomputing them, which "
            "is not covered; activation_offloading: hidden_states offloads checkpoints"
        )
    return "offloaded"


def _kind(facts: Mapping[str, Any], fact: Callable[[str], Any], framework: Framework | None) -> str | None:
    if facts.get("fsdp_checkpointing") == "yes":
        if facts.get("checkpointing") == "yes":
            raise BadInput("gradient_checkpointing: given both to the Trainer and to FSDP, which the Trainer refuses")
        return "non-reentrant"  # accelerate/utils/fsdp_utils.py: CheckpointImpl.NO_REENTRANT
    found = fact("checkpointing")
    if found is None and framework is not None and facts.get("reentrant") == "no":
        return "non-reentrant"  # of a preset with checkpoints: LLaMA-Factory's use_reentrant_gc
    if found != "yes":
        return None if found is None else "none"
    reentrant = fact("reentrant")
    if reentrant is None and framework is not None and "reentrant" not in framework.defaults:
        return None  # the value of the preset, which depends on sharding
    return "reentrant" if reentrant == "yes" else "non-reentrant"


def of_adapters_under_zero3(
    framework: Framework | None, method: str | None, sharding: str | None, fields: Mapping[str, Any], assumed: list[str]
) -> dict[str, str]:
    """The checkpoints that TRL's trainers make reentrant with adapters under ZeRO-3, whatever files say."""
    table = job_keys().frameworks
    is_trl = framework in (table["trl"], table["peft-sft"]) and sharding == "zero3"
    is_changed = is_trl and fields.get("gradient_checkpointing") == "non-reentrant"
    if not is_changed or key(str(method)) not in ("lora", "qlora"):
        return {}
    assumed.append(
        "gradient_checkpointing = reentrant (trl v1.9.0, trl/trainer/sft_trainer.py: forced with adapters under ZeRO-3)"
    )
    return {"gradient_checkpointing": "reentrant"}
