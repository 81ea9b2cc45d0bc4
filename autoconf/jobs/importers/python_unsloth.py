"""Read the calls of unsloth in a Python script: the model and its adapters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.python_literals import Literals, argument_of, name_of
from autoconf.jobs.importers.words import unknown

OWNER = "FastLanguageModel"
_NO_FILE = "give the job by options instead of --job"
# unsloth 2025.10, models/loader.py and models/llama.py: keywords and the arguments that they are read as; those with ""
# change no memory.
_OF_UNSLOTH_MODEL = {
    "model_name": "model_name_or_path", "max_seq_length": "max_seq_length", "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit", "dtype": "torch_dtype", "full_finetuning": "", "token": "", "device_map": "",
    "trust_remote_code": "", "use_gradient_checkpointing": "use_gradient_checkpointing", "random_state": "",
    "fast_inference": "use_vllm", "gpu_memory_utilization": "", "max_lora_rank": "", "rope_scaling": "",
    "fix_tokenizer": "", "revision": "", "unsloth_tiled_mlp": "unsloth_tiled_mlp",
}  # fmt: skip
_OF_UNSLOTH_ADAPTERS = {
    "r": "lora_r", "target_modules": "lora_target_modules", "lora_dropout": "lora_dropout", "lora_alpha": "",
    "bias": "bias", "use_gradient_checkpointing": "use_gradient_checkpointing", "random_state": "", "use_rslora": "",
    "loftq_config": "loftq_config", "max_seq_length": "", "modules_to_save": "lora_modules_to_save",
    "use_dora": "use_dora", "layers_to_transform": "lora_layers_to_transform", "layers_pattern": "",
    "init_lora_weights": "lora_init_lora_weights",
}  # fmt: skip
_UNSLOTH_DEFAULTS = {
    "r": 16, "lora_dropout": 0.0, "use_gradient_checkpointing": "unsloth",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip


class Script(Protocol):
    """What is read of a script."""

    literals: Literals

    def place(self, node: ast.expr, key: str) -> Place:
        """The place of a call or an argument."""

    def calls_of(self, method: str, owner: str) -> list[ast.Call]:
        """The calls of a method of a class."""

    def setting(self, call: ast.Call, argument: str, value: Any, key: str) -> Iterator[Setting]:
        """The setting of an argument."""


def of_unsloth(script: Script, loads: Sequence[ast.Call]) -> Iterator[Setting]:
    """The model and the adapters (unsloth, models/loader.py and models/llama.py, with their defaults)."""
    wraps = script.calls_of("get_peft_model", OWNER)
    if len(loads) > 1 or len(wraps) > 1:
        raise BadInput(f"{script.place([*loads, *wraps][-1], 'FastLanguageModel')}: more than one model; {_NO_FILE}")
    yield from _named(script, loads[0], _OF_UNSLOTH_MODEL)
    given = {keyword.arg for keyword in loads[0].keywords}
    full = argument_of(loads[0], "full_finetuning", None)
    if not wraps:
        is_full = full is not None and script.literals.value(full) is True
        value = False if is_full else unknown("adapters", "no get_peft_model, and no full_finetuning=True")
        yield from script.setting(loads[0], "adapters", value, "use_peft")
    elif "load_in_4bit" not in given:
        yield from script.setting(loads[0], "load_in_4bit (default)", True, "load_in_4bit")
    dtype = argument_of(loads[0], "dtype", None)
    if wraps and (dtype is None or script.literals.value(dtype) is None):
        yield from script.setting(loads[0], "dtype (default)", "bfloat16", "torch_dtype")
    for wrap in wraps:
        yield from script.setting(wrap, "adapters", True, "use_peft")
        yield from script.setting(wrap, "double quantization", True, "use_bnb_nested_quant")
        yield from _named(script, wrap, _OF_UNSLOTH_ADAPTERS)
        left = set(_UNSLOTH_DEFAULTS) - {keyword.arg for keyword in wrap.keywords}
        for argument in sorted(left):
            key = _OF_UNSLOTH_ADAPTERS[argument]
            yield from script.setting(wrap, f"{argument} (default)", _UNSLOTH_DEFAULTS[argument], key)


def of_plain_arguments(script: Script, call: ast.Call, found: Sequence[Setting]) -> Iterator[Setting]:
    """The optimizer of transformers' own TrainingArguments, which have another default than unsloth's config.

    Its trainer takes the values that they have (unsloth/trainer.py at 0024bb0, _backwards_compatible_trainer).
    """
    if all(setting.key != "optim" for setting in found):
        # transformers 4.55.4, training_args.py, default_optim
        yield from script.setting(call, "optim (default)", "adamw_torch", "optim")


def _named(script: Script, call: ast.Call, keys: Mapping[str, str]) -> Iterator[Setting]:
    """The settings of a call whose keywords have other names than the arguments."""
    if len(call.args) > 1 or any(keyword.arg is None for keyword in call.keywords):
        raise BadInput(f"{script.place(call, name_of(call.func))}: write its keywords out; {_NO_FILE}")
    if call.args and "model_name" in keys:
        yield from script.setting(call, "model_name", script.literals.value(call.args[0]), "model_name_or_path")
    is_4bit = argument_of(call, "load_in_4bit", None)
    for keyword in call.keywords:
        value = script.literals.value(keyword.value)
        if keyword.arg == "model_name" and (is_4bit is None or script.literals.value(is_4bit) is True):
            value = re.sub(r"-(unsloth-)?bnb-4bit$", "", value) if isinstance(value, str) else value
        key = keys.get(str(keyword.arg), str(keyword.arg))
        if key:
            yield from script.setting(call, str(keyword.arg), value, key)
