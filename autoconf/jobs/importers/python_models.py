"""The model, the length of samples and the adapters of a Python script."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Setting, job_keys, settings
from autoconf.jobs.importers.python_literals import argument_of, name_of, owner_of, shown
from autoconf.jobs.importers.python_names import Names
from autoconf.jobs.importers.python_statements import TRAINERS
from autoconf.jobs.importers.words import is_unknown, unknown

_REFERRING = ("DPOTrainer", "KTOTrainer")
_ADAPTERS, _GPTQ = "LoraConfig", "GPTQConfig"
_PLAIN = ("bias", "task_type", "use_rslora", "use_dora", "inference_mode")  # keys of adapters without lora_ before them
_LORA_DEFAULTS = {"lora_r": 8, "lora_dropout": 0.0}  # peft 0.21.2, src/peft/tuners/lora/config.py
_PHI = re.compile(r"(?i)\bphi-[12]\b")  # peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
_ADAPTS = re.compile(r"(?i)peft|lora|adapter")
_SAVES = re.compile(r"(?i)state|save|print|merge|disable")
_ONE_LESS = re.compile(r".+\['input_ids'\]\[:-1\]")
_MOST_NAMES = 10  # that are bound to names
_QUANTIZING = ("quantization_config", "load_in_4bit", "load_in_8bit")
# Arguments of trainers up to trl v0.15.2 (tokenizer) and v0.12.2, sft_trainer.py and dpo_trainer.py.
_OF_OLDER_TRL = (
    "tokenizer", "max_seq_length", "dataset_text_field", "packing", "dataset_num_proc", "neftune_noise_alpha",
    "model_init_kwargs", "dataset_kwargs", "beta", "max_length", "max_prompt_length", "loss_type",
)  # fmt: skip
_NO_FILE = "give the job by options instead of --job"


class Models(Names):
    """The model of a script and what it makes of it.

    Attributes:
        is_launched: Whether a command starts the script with its options.
    """

    is_launched = False

    def length(self) -> Iterator[Setting]:
        """The length to which the script's one call of a tokenizer cuts samples, or its own slice does."""
        found: list[tuple[ast.expr, ast.expr]] = []
        for call in (call for calls in self.calls.values() for call in calls):
            length, cuts = argument_of(call, "max_length", None), argument_of(call, "truncation", None)
            if length is not None and cuts is not None and self.literals.value(cuts) is not False:
                found.append((call, length))
        for node in self.nodes:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id="input_ids")],
                    value=ast.Subscript(value=ast.Name(id="input_ids"), slice=ast.Slice(upper=upper, lower=None)),
                ) if upper is not None:
                    found.append((node.value, upper))
        if len(found) == 1:
            (place, value), *_ = found
            value = self._of_tokenizer() or value if name_of(value) == "model_max_length" else value
            tokens = self.literals.value(value)
            tokens = tokens - 1 if isinstance(tokens, int) and self._drops_a_token() else tokens
            yield Setting(self.place(place, "max_length"), "arguments", "max_length", tokens)

    def _drops_a_token(self) -> bool:
        """Whether the script trains what its tokenizer returns without the last token."""
        return any(
            isinstance(key, ast.Constant) and key.value == "input_ids" and _ONE_LESS.fullmatch(ast.unparse(value))
            for node in self.nodes
            if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
        )

    def undecided_length(self, config: ast.Call) -> Iterator[Setting]:
        """An unknown length where TRL's default is not the only one that cuts samples."""
        given = {keyword.arg for keyword in config.keywords}
        if self._of_tokenizer() is not None and not given & {"max_length", "max_seq_length"}:
            value = unknown("max_length", "not given, and the script sets the tokenizer's model_max_length")
            yield from self.setting(config, "max_length", value, "max_length")

    def _of_tokenizer(self) -> ast.expr | None:
        """The length that the script gives its tokenizer; nothing if it gives several."""
        loads = (argument_of(call, "model_max_length", None) for call in self.calls.get("from_pretrained", ()))
        found = [length for length in loads if length is not None]
        for node in (node for node in self.nodes if isinstance(node, ast.Assign)):
            found += [node.value for target in node.targets if ast.unparse(target) == "tokenizer.model_max_length"]
        return found[0] if len(found) == 1 else None

    def arguments(
        self, call: ast.Call, only: Sequence[str] | None = None, name: Callable[[str], str] = str
    ) -> Iterator[Setting]:
        """The settings that the keywords of a call give."""
        for keyword in call.keywords:
            if keyword.arg is None:
                if only is None:
                    place = self.place(keyword.value, f"{name_of(call.func)}: **{shown(keyword.value)}")
                    raise BadInput(f"{place}: may set anything; write the arguments out, or {_NO_FILE}")
            elif only is None and keyword.arg == "model_init_kwargs" and self._loads_by_name():
                yield from self._of_loading(call, keyword.value)
            elif only is None or keyword.arg in only:
                yield from self.setting(call, keyword.arg, self.literals.value(keyword.value), name(keyword.arg))

    def _loads_by_name(self) -> bool:
        """Whether a trainer gets the name of its model; with a model it ignores how to load one (trl v1.9.0)."""
        return any(self._named(trainer) is not None for trainer in self._trainers())

    def _trainers(self) -> list[ast.Call]:
        return [call for name in TRAINERS for call in self.calls.get(name, ())]

    def _of_loading(self, call: ast.Call, node: ast.expr) -> Iterator[Setting]:
        """The arguments with which TRL loads a model by name (trl v1.9.0, trl/trainer/sft_trainer.py)."""
        found, key = self._resolved(node), "model_init_kwargs"
        given: dict[Any, ast.expr] = {}
        if isinstance(found, ast.Dict):
            names = (self.literals.value(name) if name is not None else None for name in found.keys)
            given = dict(zip(names, found.values, strict=True))
        elif isinstance(found, ast.Call) and is_call(found, "dict") and not found.args:
            given = {keyword.arg: keyword.value for keyword in found.keywords}
        elif not _is_none(found):
            given = {None: node}
        adapted = [trainer for trainer in self._trainers() if argument_of(trainer, "peft_config", None) is not None]
        if any(map(self.is_of_older_trl, adapted)) and not given.keys().isdisjoint(_QUANTIZING):
            yield from self.setting(call, "prepared base", "norms", "prepared_base")  # trl v0.12.2, sft_trainer.py
        for name, value in given.items():
            if name == "quantization_config":
                yield from self._quantization(call, value)
            elif name in _QUANTIZING:
                yield from self.setting(call, f"{key}.{name}", self.literals.value(value), name)
            elif name is None or is_unknown(name):
                open_keys = ("load_in_4bit", f"{key}.dtype", f"{key}.attn_implementation")
                for open_key in open_keys:
                    yield from self.setting(call, key, unknown(shown(value), "not a literal"), open_key)
            else:
                yield from self.setting(call, f"{key}.{name}", self.literals.value(value), f"{key}.{name}")

    def setting(self, call: ast.Call, argument: str, value: Any, key: str) -> Iterator[Setting]:
        place = self.place(call, f"{name_of(call.func)}: {argument}")
        return settings("arguments", {key: value}, lambda dotted: place._replace(key=f"{name_of(call.func)}: {dotted}"))

    def _resolved(self, node: ast.expr | None) -> ast.expr | None:
        """What an expression certainly is: what its name is bound to, and the branch that its condition takes."""
        for _ in range(_MOST_NAMES):
            if isinstance(node, ast.Name) and node.id in self.bound:
                node = self.bound[node.id]
            elif isinstance(node, ast.IfExp) and (known := self.literals.truth(node.test)) is not None:
                node = node.body if known else node.orelse
            else:
                break
        return node

    def called(self, node: ast.expr | None) -> ast.Call | None:
        """The call that an expression is, or that its name is bound to."""
        found = self._resolved(node)
        return found if isinstance(found, ast.Call) else None

    def _loads(self, trainer: ast.Call) -> list[ast.Call]:
        """The calls that may load the model of a trainer."""
        heads = (
            "ForCausalLM",
            "ForSequenceClassification" if name_of(trainer.func) == "RewardTrainer" else "ForCausalLM",
        )
        loads = [c for c in self.calls.get("from_pretrained", ()) if name_of(owner_of(c)).endswith(heads)]
        bound = self.called(argument_of(trainer, "model", 0))
        return [bound] if bound in loads else loads

    def _named(self, trainer: ast.Call) -> str | None:
        """The model of a trainer that loads it by its name."""
        given = argument_of(trainer, "model", 0)
        name = None if given is None else self.literals.value(given)
        return name if isinstance(name, str) and name != unknown(shown(given), "not a literal") else None

    def is_made_elsewhere(self, trainer: ast.Call) -> bool:
        """Whether the model of a trainer is made by code that is not read, which may add adapters or quantize it."""
        return self._named(trainer) is None and not self._loads(trainer)

    def model(self, trainer: ast.Call, config: ast.Call | None = None) -> Iterator[Setting]:
        name, loads = self._named(trainer), self._loads(trainer)
        if name is not None:
            yield from self.setting(trainer, "model", name, "model_name_or_path")
            quantization = argument_of(trainer, "quantization_config", None)  # of TRL's trainers, for a model by name
            yield from () if quantization is None else self._quantization(trainer, quantization)
            loading = argument_of(trainer, "model_init_kwargs", None)  # of TRL's trainers up to v0.12.2
            yield from () if loading is None else self._of_loading(trainer, loading)
        elif len(loads) != 1:
            at = f"{len(loads)} calls of from_pretrained load a model"
            yield from self.setting(trainer, "model", unknown("model", at), "model_name_or_path")
            yield from self.setting(trainer, "dtype", unknown("dtype", at), "torch_dtype")
            if not loads:
                yield from self._made_elsewhere(trainer, config)
            elif self.calls.get("BitsAndBytesConfig") or any(
                map(self.quantizes, self.calls.get("from_pretrained", ()))
            ):
                yield from self.setting(trainer, "quantization", unknown("quantization", at), "load_in_4bit")
        else:
            yield from self._loaded(loads[0], trainer, config)

    def _made_elsewhere(self, trainer: ast.Call, config: ast.Call | None) -> Iterator[Setting]:
        """What a model may have that is made by code that is not read."""
        why = unknown("model", "it is made by code that is not read")
        self.assumed[f"{self.place(trainer, 'model')}: made by code that is not read; counted as transformers' own"] = (
            None
        )
        yield from self.setting(trainer, "quantization", why, "load_in_4bit")
        checkpoints = None if config is None else argument_of(config, "gradient_checkpointing", None)
        if checkpoints is None or self.literals.value(checkpoints) is not True:
            yield from self.setting(trainer, "gradient_checkpointing", why, "gradient_checkpointing")

    def _loaded(self, load: ast.Call, trainer: ast.Call, config: ast.Call | None) -> Iterator[Setting]:
        path = argument_of(load, "pretrained_model_name_or_path", 0)
        value = unknown("model", "not given") if path is None else self.literals.value(path)
        yield from self.setting(load, "model", value, "model_name_or_path")
        given = {keyword.arg for keyword in load.keywords}
        if None in given and not given & {"dtype", "torch_dtype"}:
            yield from self.setting(load, "dtype", unknown("**", "may be anything"), "torch_dtype")
        elif not (given & {"dtype", "torch_dtype"} or self._is_quantized(load) or self._says_release(trainer, config)):
            # the checkpoint's, or float32 before transformers 5; of a quantized base never float32
            yield from self.setting(load, "dtype", unknown("dtype", "not given"), "torch_dtype")
        for keyword in load.keywords:
            if keyword.arg == "quantization_config":
                yield from self._quantization(load, keyword.value)
            elif keyword.arg == "config" and is_call(self.called(keyword.value), "from_pretrained"):
                continue
            elif keyword.arg not in (None, "pretrained_model_name_or_path"):
                yield from self.setting(load, str(keyword.arg), self.literals.value(keyword.value), str(keyword.arg))

    def _says_release(self, trainer: ast.Call, config: ast.Call | None) -> bool:
        """Whether the release is known as far as the dtype goes: that of a command's keys, or an older one's keys."""
        if config is None:
            return self.is_launched
        is_of_trl = name_of(config.func) != "TrainingArguments"
        name = "trl before 1.0" if is_of_trl else "transformers before 5"
        is_older = self.is_of_older_trl if is_of_trl else self.is_of_older_transformers
        return is_older(trainer) or any(keyword.arg in job_keys().frameworks[name].older for keyword in config.keywords)

    def quantizes(self, load: ast.Call) -> bool:
        """Whether a call that loads a model says how its weights are quantized."""
        return any(keyword.arg in _QUANTIZING for keyword in load.keywords)

    def is_of_older_trl(self, trainer: ast.Call) -> bool:
        """Whether a trainer of TRL has an argument that it had only up to TRL 0.15."""
        return any(keyword.arg in _OF_OLDER_TRL for keyword in trainer.keywords)

    def is_of_older_transformers(self, trainer: ast.Call) -> bool:
        """Whether a call is one that transformers 5.23.0 refuses, or PEFT from 0.10 on."""
        loads = [c for c in self.calls.get("from_pretrained", ()) if name_of(owner_of(c)).endswith("ForCausalLM")]
        given = {keyword.arg for load in loads for keyword in load.keywords}
        return (
            self.is_of_older_trl(trainer)  # trainer.py, Trainer: no tokenizer either
            or bool(given & {"use_flash_attention_2", *_QUANTIZING[1:]})  # modeling_utils.py, from_pretrained
            or "prepare_model_for_int8_training" in self.calls
        )

    def _is_quantized(self, load: ast.Call) -> bool:
        """Whether the base certainly has 4 or 8 bits."""
        config = self.called(argument_of(load, "quantization_config", None))
        given = [argument_of(call, name, None) for call in (load, config) if call for name in _QUANTIZING[1:]]
        return is_call(config, _GPTQ) or any(v is not None and self.literals.value(v) is True for v in given)

    def is_quantized(self) -> bool | None:
        """Whether the base has 4 or 8 bits; ``None`` if that is not certain."""
        loads = [c for c in self.calls.get("from_pretrained", ()) if name_of(owner_of(c)).endswith("ForCausalLM")]
        if loads and all(map(self._is_quantized, loads)):
            return True
        given = {keyword.arg for load in loads for keyword in load.keywords}
        return None if not loads or given & {None, *_QUANTIZING} else False

    def _quantization(self, load: ast.Call, node: ast.expr) -> Iterator[Setting]:
        call = self.called(node)
        if _is_none(self._resolved(node)):
            return
        if is_call(call, _GPTQ) and (bits := argument_of(call, "bits", 0)) is not None:
            yield from self.setting(call, "bits", self.literals.value(bits), "gptq_bits")
            return
        if call is None or name_of(call.func) != "BitsAndBytesConfig":
            value = unknown(shown(node), "not a literal BitsAndBytesConfig")
            yield from self.setting(load, "quantization_config", value, "load_in_4bit")
            return
        nested = {"bnb_4bit_use_double_quant": "use_bnb_nested_quant", "bnb_4bit_compute_dtype": "bnb_compute"}
        yield from self.arguments(call, name=lambda key: nested.get(key, key))

    def adapters(self, trainer: ast.Call) -> Iterator[Setting]:
        wraps = self.calls.get("get_peft_model", [])
        node = argument_of(trainer, "peft_config", None)
        node = argument_of(wraps[0], "peft_config", 1) if len(wraps) == 1 and node is None else node
        if (node is None or _is_none(self._resolved(node))) and not wraps:
            if name_of(trainer.func) != "Trainer" and any(keyword.arg is None for keyword in trainer.keywords):
                yield from self._uncertain(trainer, unknown("**", "may have a peft_config"))
            elif not (self._may_adapt() or self.is_made_elsewhere(trainer)):
                yield from self.setting(trainer, "no peft_config", False, "use_peft")
            elif name_of(trainer.func) != "Trainer":  # whose default would be none
                yield from self._uncertain(trainer, unknown("peft_config", "not given, but a call may make adapters"))
            return
        if is_call(self.called(node), "get_peft_config"):  # of the command's own options, as TRL names them
            return
        call = self._returned(self.called(node))
        if call is None or name_of(call.func) != _ADAPTERS:
            yield from self._uncertain(trainer, unknown(shown(node), f"not a literal {_ADAPTERS}"))
            return
        reference = argument_of(trainer, "ref_model", 1) if name_of(trainer.func) in _REFERRING else None
        if reference is not None and not _is_none(self._resolved(reference)):
            yield from self.setting(trainer, "ref_model", shown(reference), "ref_model")
        yield from self.of_lora(call)

    def _uncertain(self, trainer: ast.Call, value: str) -> Iterator[Setting]:
        """Adapters that may be the only ones that the script makes, and whose defaults are not those of a command."""
        made = self.calls.get(_ADAPTERS, ())
        keys = ("lora_r", "lora_target_modules", "lora_dropout", "lora_modules_to_save") if len(made) != 1 else ()
        for key in ("use_peft", *keys):
            yield from self.setting(trainer, "peft_config", value, key)
        for call in made if not keys else ():
            yield from (setting for setting in self.of_lora(call) if setting.key != "use_peft")

    def _returned(self, call: ast.Call | None) -> ast.Call | None:
        """A call, or the one of ``LoraConfig`` in the script's own function that it calls."""
        function = None if call is None else self.functions.get(name_of(call.func))
        made = self.calls.get(_ADAPTERS, [])
        is_in_it = function is not None and len(made) == 1 and made[0] in ast.walk(function)
        return made[0] if is_in_it else call

    def _may_adapt(self) -> bool:
        """Whether anything that the script calls may make adapters."""
        return any(_ADAPTS.search(name) and not _SAVES.search(name) for name in self.calls)

    def _names_phi(self) -> bool:
        """Whether the model may be one whose modules by PEFT's default are not in attention alone (peft 0.21.2)."""
        return any(_PHI.search(str(constant.value)) for constant in self.constants)

    def of_lora(self, call: ast.Call) -> Iterator[Setting]:
        """The adapters of a ``LoraConfig``, or of another call that makes one with its defaults."""
        yield from self.setting(call, "adapters", True, "use_peft")
        if name_of(call.func) == _ADAPTERS:
            yield from self.arguments(call, name=adapter_key)
        given = {keyword.arg for keyword in call.keywords}
        for argument, default in _LORA_DEFAULTS.items():
            if not {argument, argument.removeprefix("lora_")} & given:
                place = self.place(call, f"{_ADAPTERS}: {argument} (default)")
                yield Setting(place, "arguments", argument, default)
        if "target_modules" not in given:
            value = unknown("target_modules", "not given") if self._names_phi() else "default"
            yield from self.setting(call, "target_modules (default)", value, "lora_target_modules")


def casts_back(script: Names, is_bf16: bool) -> ast.Call | None:
    """The cast of adapters to bfloat16 in a loop over modules that does the same with embeddings and head, as QLoRA's.

    https://github.com/artidoro/qlora, qlora.py, get_accelerate_model, which many scripts copy.
    """
    adapters, others = None, False
    for node in (node for node in script.nodes if isinstance(node, ast.If)):
        tested = ast.unparse(node.test)
        if "LoraLayer" in tested:
            adapters = adapters or next(_casts_to_bf16(script, node.body, is_bf16), None)
        elif "lm_head" in tested or "embed_tokens" in tested:
            others = others or any(_casts_to_bf16(script, node.body, is_bf16))
    return adapters if others else None


def _casts_to_bf16(script: Names, statements: Sequence[ast.stmt], is_bf16: bool) -> Iterator[ast.Call]:
    """Casts to bfloat16 that run, as far as the precision of the job decides."""
    for statement in statements:
        if isinstance(statement, ast.If):
            tests = statement.test.values if isinstance(statement.test, ast.BoolOp) else [statement.test]
            if all(is_bf16 or "bf16" not in ast.unparse(test) or script.literals.truth(test) for test in tests):
                yield from _casts_to_bf16(script, statement.body, is_bf16)
            continue
        calls = (node for node in ast.walk(statement) if isinstance(node, ast.Call) and name_of(node.func) == "to")
        yield from (call for call in calls if call.args and name_of(call.args[0]) == "bfloat16")


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def is_call(call: ast.Call | None, name: str) -> TypeGuard[ast.Call]:
    return call is not None and name_of(call.func) == name


def adapter_key(argument: str) -> str:
    """The key of an argument of ``LoraConfig``.

    >>> adapter_key("r"), adapter_key("lora_alpha"), adapter_key("bias")
    ('lora_r', 'lora_alpha', 'bias')
    """
    return argument if argument in _PLAIN or argument.startswith("lora_") else f"lora_{argument}"
