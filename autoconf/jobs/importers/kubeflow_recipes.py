"""The recipes of torchtune that Kubeflow's built-in trainer runs, with what its configuration overrides."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.python_literals import Literals, argument_of, name_of
from autoconf.jobs.importers.schedulers import PER_NODE, Request
from autoconf.jobs.importers.torchtune import adapter_targets


class Recipe(NamedTuple):
    """The recipes of a model: with all parameters trained on several GPUs, and with adapters.

    Attributes:
        model: Its name.
        batch: The batch of each GPU.
        full_steps: Micro-batches of a step where all parameters are trained.
        checkpoints: Whether activations are recomputed, where all parameters are trained, and with a 4-bit base.
        rank: That of its adapters.
    """

    model: str
    batch: int
    full_steps: int
    checkpoints: tuple[bool, bool]
    rank: int


# kubeflow/trainer v2, pkg/runtime/framework/plugins/torch/torchtune.go, getRecipeAndConfig, and the configs that it
# names of torchtune v0.6.1, recipes/configs.
_RUNTIMES = {
    "torchtune-llama3.2-1b": Recipe("llama3.2-1b", batch=4, full_steps=8, checkpoints=(False, False), rank=64),
    "torchtune-llama3.2-3b": Recipe("llama3.2-3b", batch=4, full_steps=8, checkpoints=(True, True), rank=64),
    "torchtune-qwen2.5-1.5b": Recipe("qwen2.5-1.5b", batch=2, full_steps=1, checkpoints=(True, False), rank=32),
}
_STEPS_OF_ADAPTERS = 8
_OPTIMIZER = "torch.optim.AdamW_fused"
_OVERRIDES = {"batch_size": "batch_size", "dtype": "dtype", "loss": "loss"}
_OF_ADAPTERS = ("lora_rank", "lora_dropout", "quantize_base", "use_dora")  # below model in the recipe
_LORA_MODULES = ["q_proj", "v_proj", "output_proj"]


class Script(Protocol):
    """What is read of a script."""

    literals: Literals
    bound: dict[str, ast.expr]

    def place(self, node: ast.expr, key: str) -> Place:
        """The place of a call or an argument."""


def recipe_of(script: Script, config: ast.Call, runtime: str, requests: Sequence[Request]) -> Iterator[Setting]:
    """The settings of the recipe that a ``TorchTuneConfig`` runs.

    Args:
        script: The script.
        config: The call.
        runtime: The name of the runtime.
        requests: The GPUs that it requests.

    Raises:
        BadInput: The runtime is not one of Kubeflow's own.
    """
    place = script.place(config, "TorchTuneConfig")
    if runtime not in _RUNTIMES:
        known = ", ".join(_RUNTIMES)
        raise BadInput(
            f"{place}: the runtime {shortened(runtime) or 'of a built-in trainer'!r} decides the recipe and is not "
            f"known here; known are {known}; give the job by options instead of --job"
        )
    recipe = _RUNTIMES[runtime]
    node = argument_of(config, "peft_config", None)
    node = script.bound.get(node.id, node) if isinstance(node, ast.Name) else node
    adapters = node if isinstance(node, ast.Call) else None
    alone = [request.number for request in requests if request.what == PER_NODE] == ["1"]
    if adapters is None and alone:
        raise BadInput(
            f"{place}: on one GPU the recipe runs its optimizer within the backward pass, which is not covered; give "
            "the job by options instead of --job"
        )
    quantized = adapters is not None and _value(script, argument_of(adapters, "quantize_base", None)) is True
    checkpoints = recipe.checkpoints[0] if adapters is None else recipe.checkpoints[1] and quantized
    values: dict[str, Any] = {
        "model_name": recipe.model,
        "kind": "full" if adapters is None else "lora",
        "batch_size": recipe.batch,
        "gradient_accumulation_steps": recipe.full_steps if adapters is None else _STEPS_OF_ADAPTERS,
        "dtype": "bf16",
        "loss": "torchtune.modules.loss.CEWithChunkedOutputLoss",
        "optimizer": _OPTIMIZER,
        "enable_activation_checkpointing": checkpoints,
        "tokenizer.max_seq_len": None,
    }
    given = {_OVERRIDES[k.arg]: _value(script, k.value) for k in config.keywords if k.arg in _OVERRIDES}
    for key, value in {**values, **given}.items():
        source = key if key in given else f"{key} (of the recipe)"
        yield Setting(place._replace(key=f"TorchTuneConfig: {source}"), "torchtune", key, value)
    if adapters is not None:
        yield from _adapters(script, adapters, recipe)


def _adapters(script: Script, call: ast.Call, recipe: Recipe) -> Iterator[Setting]:
    given = {str(keyword.arg): _value(script, keyword.value) for keyword in call.keywords}
    given.setdefault("lora_rank", recipe.rank)
    for argument in _OF_ADAPTERS:
        if argument in given:
            where = script.place(call, f"LoraConfig: {argument}")
            yield Setting(where, "torchtune", f"model.{argument}", given[argument])
    section = {"apply_lora_to_mlp": True, "lora_attn_modules": _LORA_MODULES, **given}
    place = script.place(call, "LoraConfig: lora_attn_modules")
    yield Setting(place, "torchtune", "targets", adapter_targets(section))


def _value(script: Script, node: ast.expr | None) -> Any:
    """A literal, or a member of the SDK's enumerations ``DataType`` and ``Loss`` as its value."""
    if isinstance(node, ast.Attribute) and name_of(node.value) == "DataType":
        return node.attr.casefold()
    if isinstance(node, ast.Attribute) and name_of(node.value) == "Loss":
        return f"torchtune.modules.loss.{node.attr}"
    return None if node is None else script.literals.value(node)
