"""Refuse a Python script that changes memory in ways that no key says."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Setting, job_keys
from autoconf.jobs.importers.python_casts import note_casts
from autoconf.jobs.importers.python_literals import argument_of, name_of, owner_of, shown
from autoconf.jobs.importers.python_names import Names
from autoconf.jobs.importers.python_statements import TRAINERS
from autoconf.jobs.importers.words import is_unknown, unknown

_NO_FILE = "give the job by options instead of --job"
_NOT_COVERED = {
    "FastModel": "models of unsloth that also read images or sound are not covered",
    **dict.fromkeys(
        ("FastVisionModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForMultimodalLM"),
        "models that also read images are not covered",
    ),
    "UnslothTrainer": "embeddings that are trained are not covered",
    "add_adapter": "adapters that are added by hand are not covered",
    "PeftModel": "adapters that are loaded are not covered",
    "DataParallel": "one process for all GPUs, whose first one holds more, is not covered",
}
_OTHER_MODELS = re.compile(r"For(ConditionalGeneration|Seq2SeqLM|ImageTextToText|Vision2Seq|MultimodalLM)$")
WITH_ENCODER = "models with an encoder, of images or of text, are not read from scripts"
_LIBRARIES = ("transformers", "modelscope", "peft")  # whose classes are those of transformers
_PART, _VOCABULARY = "training a part of the model is not covered", "a vocabulary of another size is not covered"
_LAYERS, _HEAD = ("layers", "num_hidden_layers"), "lm_head"
_ATTENTION = ("attn_implementation", "_attn_implementation")
_LIGER = re.compile(r"apply_liger_kernel_to_|AutoLigerKernel")  # https://github.com/linkedin/Liger-Kernel
_ADAPTS = ("get_peft_model", "LoraConfig")
_OF_OUTPUT = ("output", "outputs")  # what a hook of PEFT's own kind makes differentiable, not parameters
_LOADERS = ("AutoTokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "AutoProcessor")
_MOST_SPECIAL = 7  # special tokens that have a name of their own: transformers 5.23.0, tokenization_utils_base.py
_MOST_TOKENS = 100  # rows of two matrices of some 100,000


def check(script: Names) -> None:
    """Check the calls of a script, and the attributes that it sets.

    Raises:
        BadInput: One of them changes memory.
    """
    checked: dict[str, Callable[[Names, ast.Call], str]] = {
        "resize_token_embeddings": _of_resizing, "requires_grad_": _of_freezing, "from_pretrained": _of_loading,
    }  # fmt: skip
    _assume_one_training(script)
    note_casts(script, _adapts(script))
    for node in script.nodes:
        if isinstance(node, ast.Call):
            for name in (name_of(node.func), name_of(owner_of(node))):
                if _LIGER.match(name):
                    kernels = unknown(name, "which of Liger's kernels it takes")
                    script.outside.append(Setting(script.place(node, name), "arguments", "use_liger_kernel", kernels))
                problem = checked[name](script, node) if name in checked else _NOT_COVERED.get(name, "")
                if problem:
                    raise BadInput(f"{script.place(node, name)}: {problem}; {_NO_FILE}")
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                _check_target(script, target, node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            _check_target(script, node.target, node.value)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and name_of(target.value) in _LAYERS:
                    _check_target(script, target.value, None)


def _check_target(script: Names, target: ast.expr, value: ast.expr | None) -> None:
    """Refuse an attribute that is set where it may decide, or leave it open if it is that of a config."""
    name = name_of(target)
    if not isinstance(target, ast.Attribute) or name_of(target.value) == "self":
        return
    owner = name_of(target.value)
    if name in _LAYERS:
        raise BadInput(f"{script.place(target, name)}: a model with other layers is not covered; {_NO_FILE}")
    if name == _HEAD:
        _check_head(script, target, value)
        return
    if name in _ATTENTION:
        kind = unknown(shown(target), "set outside of the load")
        script.outside.append(Setting(script.place(target, name), "arguments", "attn_implementation", kind))
        return
    is_of_model = owner == "config" and isinstance(target.value, ast.Attribute)  # such as model.config.torch_dtype
    if is_of_model or script.is_record(owner) or (name == "model_max_length" and "tokenizer" in owner):
        return
    if name == "requires_grad":
        if not (_adapts(script) and _is_false(script, value)):
            raise BadInput(f"{script.place(target, name)}: {_PART}; {_NO_FILE}")
    elif job_keys().dialects["arguments"].find(name) is not None:
        value_there = unknown(shown(target), "set outside of its config")
        script.outside.append(Setting(script.place(target, name), "arguments", name, value_there))


def _check_head(script: Names, target: ast.expr, value: ast.expr | None) -> None:
    """Refuse another head; one that wraps the model's own, such as to cast its output, is counted as that."""
    place = script.place(target, _HEAD)
    if not (isinstance(value, ast.Call) and any(ast.unparse(given) == ast.unparse(target) for given in value.args)):
        raise BadInput(f"{place}: a model with another head is not covered; {_NO_FILE}")
    script.assumed[f"{place}: what {name_of(value.func)} does is not read: counted as the model's own head"] = None


def _adapts(script: Names) -> bool:
    """Whether adapters are trained, which freezes all else in any case (peft 0.21.2, tuners/tuners_utils.py)."""
    return all(script.calls.get(name) for name in _ADAPTS) or (
        bool(script.calls.get("LoraConfig"))
        and any(k.arg == "peft_config" for calls in script.calls.values() for call in calls for k in call.keywords)
    )


def _is_false(script: Names, value: ast.expr | None) -> bool:
    return value is not None and script.literals.value(value) is False


def is_other_model(name: str) -> bool:
    """Whether the name of a class says that its models have an encoder, of images or of text.

    >>> is_other_model("Qwen2_5_VLForConditionalGeneration"), is_other_model("AutoModelForCausalLM")
    (True, False)
    """
    return _OTHER_MODELS.search(name) is not None


def _assume_one_training(script: Names) -> None:
    """Say that one training is counted of those in a loop, whose settings are read if they are always the same."""
    functions = [f.name for f in script.functions.values() if any(_calls(node, TRAINERS) for node in ast.walk(f))]
    for node in script.nodes:
        if isinstance(node, ast.For | ast.While) and any(_calls(n, (*TRAINERS, *functions)) for n in ast.walk(node)):
            place = f"{script.file}:{node.lineno}"
            script.assumed[f"{place}: each turn of a loop trains, and only one training is counted"] = None


def _calls(node: ast.AST, names: Sequence[str]) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) in names


def _of_loading(script: Names, call: ast.Call) -> str:
    """The problem of a model of another kind; a class that is not read is assumed to be like that of transformers."""
    owner = name_of(owner_of(call))
    if is_other_model(owner) and owner not in _NOT_COVERED:
        return f"{owner}: {WITH_ENCODER}"
    module = next((found for node in script.nodes if (found := _module_of(node, owner))), "transformers")
    if owner.endswith("ForCausalLM") and module.partition(".")[0] not in _LIBRARIES:
        place = script.place(call, owner)
        script.assumed[f"{place}: {module}, which has this class, is not read: counted as transformers' own"] = None
    return ""


def _module_of(node: ast.AST, name: str) -> str:
    """The module from which a statement imports a name, or the script that has its class."""
    if isinstance(node, ast.ImportFrom) and any(name == (alias.asname or alias.name) for alias in node.names):
        return "." * node.level + (node.module or "")
    return "the script" if isinstance(node, ast.ClassDef) and node.name == name else ""


def _of_freezing(script: Names, call: ast.Call) -> str:
    trains = argument_of(call, "requires_grad", 0)
    owner = name_of(owner_of(call))
    is_frozen = _is_false(script, trains) and (owner.startswith("ref") or _adapts(script))
    return "" if owner in _OF_OUTPUT or is_frozen else _PART


def _of_resizing(script: Names, call: ast.Call) -> str:
    """The problem of a vocabulary of another size; none if it differs by a few tokens that the script names."""
    size = argument_of(call, "new_num_tokens", 0)
    if size is None or "len(" not in ast.unparse(size) or not _is_of_model(script):
        return _VOCABULARY
    added = 0
    if any(
        k.arg == "additional_special_tokens" for load in script.calls.get("from_pretrained", ()) for k in load.keywords
    ):
        return _VOCABULARY
    for special in (*script.calls.get("add_special_tokens", ()), *script.calls.get("add_tokens", ())):
        tokens = argument_of(special, "special_tokens_dict", 0)
        count = _number_of_tokens(script, tokens, is_special=name_of(special.func) == "add_special_tokens")
        if tokens is None or count is None:
            return _VOCABULARY
        added += count
    if added > _MOST_TOKENS:
        return _VOCABULARY
    place = script.place(call, "resize_token_embeddings")
    script.assumed[f"{place}: counted as the model's own vocabulary (at most {added} tokens are added)"] = None
    return ""


def _number_of_tokens(script: Names, tokens: ast.expr | None, is_special: bool) -> int | None:
    """How many tokens a call adds at most; ``None`` if that is not certain."""
    value = None if tokens is None else script.literals.value(tokens)
    items = value.values() if isinstance(value, dict) else [value]
    counts = [len(item) if isinstance(item, list) else 1 for item in items]
    if not any(is_unknown(part) for item in items for part in (item if isinstance(item, list) else [item])):
        return sum(counts)
    others = any(isinstance(n, ast.Constant) and n.value == "additional_special_tokens" for n in script.nodes)
    return _MOST_SPECIAL if is_special and not others else None


def _is_of_model(script: Names) -> bool:
    """Whether the tokenizer is that of the model, which its config counts."""
    loads = script.calls.get("from_pretrained", [])
    paths: dict[bool, set[str]] = {True: set(), False: set()}
    for load in loads:
        owner, path = name_of(owner_of(load)), argument_of(load, "pretrained_model_name_or_path", 0)
        if path is not None and (owner in _LOADERS or owner.endswith("ForCausalLM")):
            value = script.literals.value(path)
            paths[owner in _LOADERS].add(ast.unparse(path) if is_unknown(value) else repr(value))
    return len(paths[True]) == 1 and paths[True] == paths[False]
