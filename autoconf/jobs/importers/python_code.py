"""Read the literals of a Python script or notebook that trains with TRL or transformers, without running it."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Place, Setting, job_keys, settings
from autoconf.jobs.importers.other_files import objective_in, refuse_objective
from autoconf.jobs.importers.words import cleaned, unknown

_LARGEST = 1 << 18  # characters of a script
_CONFIGS = ("SFTConfig", "TrainingArguments")
_TRAINERS = ("SFTTrainer", "Trainer")
_ADAPTERS = "LoraConfig"
_OF_TRAINER = (
    "max_seq_length",
    "packing",
    "neftune_noise_alpha",
    "dataset_text_field",
)  # of SFTTrainer before TRL 0.13
_PLAIN = ("bias", "task_type", "use_rslora", "use_dora", "inference_mode")  # keys of adapters without lora_ before them
_LORA_DEFAULTS = {"lora_r": 8, "lora_dropout": 0.0}  # peft 0.21.2, src/peft/tuners/lora/config.py
# What changes memory in ways that no key says.
_NOT_COVERED = {
    "prepare_model_for_kbit_training": "float32 norms and heads are not covered",
    "resize_token_embeddings": "a vocabulary of another size is not covered",
    "gradient_checkpointing_enable": "say gradient_checkpointing in the arguments",
    "requires_grad_": "training a part of the model is not covered",
    "FastLanguageModel": "unsloth is not covered",
    "FastModel": "unsloth is not covered",
    "add_adapter": "adapters that are added by hand are not covered",
    "PeftModel": "adapters that are loaded are not covered",
}
_NO_FILE = "give the job by options instead of --job"


class Code(NamedTuple):
    """What a script says.

    Attributes:
        settings: The literal arguments of its configs, and those that are not literal as unknown values.
        framework: ``trl`` or ``transformers``.
    """

    settings: list[Setting]
    framework: str


def read_code(text: str, file: str) -> Code:
    """Read a script.

    Args:
        text: Its text; that of a notebook is ``code_of`` it.
        file: Its name.

    Raises:
        BadInput: It is not Python, has another objective, or no single config that is read; or it does something that
            no key says.

    >>> script = "from trl import SFTConfig, SFTTrainer\\nBS = 2\\nargs = SFTConfig(per_device_train_batch_size=BS)\\n"
    >>> code = read_code(script + "SFTTrainer(model='Qwen/Qwen2.5-7B', args=args)", "train.py")
    >>> code.framework, [(s.key, s.value) for s in code.settings if not s.place.key.endswith("(default)")]
    ('trl', [('per_device_train_batch_size', 2), ('model_name_or_path', 'Qwen/Qwen2.5-7B'), ('use_peft', False)])
    """
    if len(text) > _LARGEST:
        raise BadInput(f"{file}: not a job's script: more than {_LARGEST:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python says of odd literals
            tree = ast.parse(cleaned(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{file}{line}: looks like a Python script, and is not the syntax of Python") from None
    try:
        return _Script(tree, file).read()
    except RecursionError:
        raise BadInput(f"{file}: not a job's script: nested too deeply; {_NO_FILE}") from None


def code_of(notebook: Mapping[str, Any]) -> str:
    """The code cells of a notebook, without the commands to the shell and to IPython.

    >>> code_of({"cells": [{"cell_type": "code", "source": ["!pip install trl\\n", "a = 1"]}, {"cell_type": "raw"}]})
    '\\na = 1\\n'
    """
    cells = notebook["cells"] if isinstance(notebook["cells"], list) else []
    sources = [c.get("source", "") for c in cells if isinstance(c, Mapping) and c.get("cell_type") == "code"]
    text = "\n".join("".join(map(str, source)) if isinstance(source, list) else str(source) for source in sources)
    lines = ("" if line.lstrip().startswith(("!", "%", "?")) else line for line in text.split("\n"))
    return "\n".join(lines) + "\n"


class _Script:
    """The calls and names of a script."""

    def __init__(self, tree: ast.Module, file: str) -> None:
        self.file = file
        self.bound: dict[str, ast.expr] = {}
        self.calls: dict[str, list[ast.Call]] = {}
        times: Counter[str] = Counter()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and "unsloth" in ast.unparse(node):
                raise BadInput(f"{Place(file, node.lineno, 'import')}: unsloth is not covered; {_NO_FILE}")
            if isinstance(node, ast.Call):
                self.calls.setdefault(_name(node.func), []).append(node)
            elif isinstance(node, ast.Name | ast.Attribute):
                self._check(node)
            self._bind(node, times)
        self.bound = {name: value for name, value in self.bound.items() if times[name] == 1}

    def _bind(self, node: ast.AST, times: Counter[str]) -> None:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            times[node.id] += 1
        elif isinstance(node, ast.arg):
            times[node.arg] += 2  # a parameter may be anything
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    self.bound[target.id] = node.value

    def _check(self, node: ast.Name | ast.Attribute) -> None:
        """Refuse what no key says, and an attribute that is set where it may decide."""
        name = _name(node)
        if name in _NOT_COVERED:
            raise BadInput(f"{self._place(node, name)}: {_NOT_COVERED[name]}; {_NO_FILE}")
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load) or _name(node.value) == "self":
            return
        if name == "requires_grad" or job_keys().dialects["arguments"].find(name) is not None:
            raise BadInput(f"{self._place(node, name)}: is set outside of its config; {_NO_FILE}")

    def _place(self, node: ast.expr, key: str) -> Place:
        return Place(self.file, node.lineno, key)

    def read(self) -> Code:
        for name, calls in self.calls.items():
            kind = name.removesuffix("Trainer").removesuffix("Config")
            if kind != name and (objective := objective_in(kind)):
                refuse_objective(self._place(calls[0], name), objective)
        config, trainer = self._one(_CONFIGS), self._one(_TRAINERS)
        names = _name(config.func), _name(trainer.func)
        if names == ("TrainingArguments", "SFTTrainer"):
            raise BadInput(f"{self._place(config, names[0])}: under SFTTrainer only SFTConfig is read; {_NO_FILE}")
        found = [*self._arguments(config), *self._arguments(trainer, only=_OF_TRAINER)]
        found += [*self._model(trainer), *self._adapters(trainer)]
        return Code(found, "trl" if names[0] == "SFTConfig" else "transformers")

    def _one(self, names: Sequence[str]) -> ast.Call:
        found = [call for name in names for call in self.calls.get(name, ())]
        if len(found) != 1:
            lines = f" (lines {', '.join(str(call.lineno) for call in found[:9])})" if found else ""
            raise BadInput(
                f"{self.file}: looks like a Python script, of which one call of {' or '.join(names)} is read; "
                f"it has {len(found)}{lines}; {_NO_FILE}"
            )
        return found[0]

    def _arguments(
        self, call: ast.Call, only: Sequence[str] | None = None, name: Callable[[str], str] = str
    ) -> Iterator[Setting]:
        """The settings that the keywords of a call give."""
        for keyword in call.keywords:
            if keyword.arg is None:
                if only is None:
                    place = self._place(keyword.value, f"{_name(call.func)}: **{_shown(keyword.value)}")
                    raise BadInput(f"{place}: may set anything; write the arguments out, or {_NO_FILE}")
            elif only is None or keyword.arg in only:
                yield from self._setting(call, keyword.arg, self._value(keyword.value), name(keyword.arg))

    def _setting(self, call: ast.Call, argument: str, value: Any, key: str) -> Iterator[Setting]:
        place = self._place(call, f"{_name(call.func)}: {argument}")
        return settings("arguments", {key: value}, lambda dotted: place._replace(key=f"{_name(call.func)}: {dotted}"))

    def _value(self, node: ast.expr) -> Any:
        """A literal, a name that is bound once to one, or an unknown value."""
        try:
            return self._literal(node, 0)
        except ValueError:
            return unknown(_shown(node), "not a literal")

    def _literal(self, node: ast.expr, depth: int) -> Any:
        if depth > 20:
            raise ValueError("names of names")
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name(id=name) if name in self.bound:
                return self._literal(self.bound[name], depth + 1)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self._literal(item, depth + 1) for item in items]
            case ast.Dict(keys=keys, values=values) if None not in keys:
                names = [self._literal(key, depth + 1) for key in keys if key is not None]
                return {str(k): self._literal(v, depth + 1) for k, v in zip(names, values, strict=True)}
            case ast.Attribute(value=ast.Name(id="torch"), attr=dtype):
                return f"torch.{dtype}"
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
        raise ValueError("not a literal")

    def _call(self, node: ast.expr | None) -> ast.Call | None:
        """The call that an expression is, or that its name is bound to."""
        if isinstance(node, ast.Name):
            node = self.bound.get(node.id)
        return node if isinstance(node, ast.Call) else None

    def _model(self, trainer: ast.Call) -> Iterator[Setting]:
        given = _argument(trainer, "model", 0)
        name = None if given is None else self._value(given)
        loads = [c for c in self.calls.get("from_pretrained", ()) if _name(_owner(c)).endswith("ForCausalLM")]
        if isinstance(name, str) and name != unknown(_shown(given), "not a literal"):
            yield from self._setting(trainer, "model", name, "model_name_or_path")
        elif len(loads) != 1:
            at = f"{len(loads)} calls of from_pretrained load a model"
            yield from self._setting(trainer, "model", unknown("model", at), "model_name_or_path")
        else:
            yield from self._loaded(loads[0])

    def _loaded(self, load: ast.Call) -> Iterator[Setting]:
        path = _argument(load, "pretrained_model_name_or_path", 0)
        value = unknown("model", "not given") if path is None else self._value(path)
        yield from self._setting(load, "model", value, "model_name_or_path")
        given = {keyword.arg for keyword in load.keywords}
        if None in given:
            yield from self._setting(load, "dtype", unknown("**", "may be anything"), "torch_dtype")
        elif not given & {"dtype", "torch_dtype"}:  # the checkpoint's, or float32 before transformers 5
            yield from self._setting(load, "dtype", unknown("dtype", "not given"), "torch_dtype")
        for keyword in load.keywords:
            if keyword.arg == "quantization_config":
                yield from self._quantization(load, keyword.value)
            elif keyword.arg not in (None, "pretrained_model_name_or_path"):
                yield from self._setting(load, str(keyword.arg), self._value(keyword.value), str(keyword.arg))

    def _quantization(self, load: ast.Call, node: ast.expr) -> Iterator[Setting]:
        call = self._call(node)
        if call is None or _name(call.func) != "BitsAndBytesConfig":
            value = unknown(_shown(node), "not a literal BitsAndBytesConfig")
            yield from self._setting(load, "quantization_config", value, "load_in_4bit")
            return
        nested = {"bnb_4bit_use_double_quant": "use_bnb_nested_quant", "bnb_4bit_compute_dtype": "bnb_compute"}
        yield from self._arguments(call, name=lambda key: nested.get(key, key))

    def _adapters(self, trainer: ast.Call) -> Iterator[Setting]:
        wraps = self.calls.get("get_peft_model", [])
        node = _argument(trainer, "peft_config", None)
        node = _argument(wraps[0], "peft_config", 1) if len(wraps) == 1 and node is None else node
        is_none = isinstance(node, ast.Constant) and node.value is None
        if (node is None or is_none) and not wraps:
            if _name(trainer.func) == "SFTTrainer":
                yield from self._setting(trainer, "no peft_config", False, "use_peft")
            return
        call = self._call(node)
        if call is None or _name(call.func) != _ADAPTERS:
            value = unknown(_shown(node), f"not a literal {_ADAPTERS}")
            yield from self._setting(trainer, "peft_config", value, "use_peft")
            return
        yield from self._setting(call, "adapters", True, "use_peft")
        yield from self._arguments(
            call, name=lambda key: key if key in _PLAIN else f"lora_{key}".replace("lora_lora", "lora")
        )
        given = {keyword.arg for keyword in call.keywords}
        for argument, default in _LORA_DEFAULTS.items():
            if not {argument, argument.removeprefix("lora_")} & given:
                place = self._place(call, f"{_ADAPTERS}: {argument} (default)")
                yield Setting(place, "arguments", argument, default)
        if "target_modules" not in given:
            value = unknown("target_modules", "not given")
            yield from self._setting(call, "target_modules", value, "lora_target_modules")


def _name(node: ast.expr | None) -> str:
    """The last part of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _owner(call: ast.Call) -> ast.expr | None:
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def _argument(call: ast.Call, name: str, place: int | None) -> ast.expr | None:
    found = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return call.args[place] if found is None and place is not None and place < len(call.args) else found


def _shown(node: ast.expr | None) -> str:
    return "nothing" if node is None else shortened(ast.unparse(node), 60)
