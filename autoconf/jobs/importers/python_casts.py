"""Casts of a whole model, or of its parameters, that a Python script makes before it trains."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from autoconf.jobs.importers.key_table import Setting
from autoconf.jobs.importers.python_literals import name_of, owner_of
from autoconf.jobs.importers.python_names import Names
from autoconf.jobs.importers.words import unknown

_CASTS = {"half": "float16", "float": "float32", "bfloat16": "bfloat16", "double": "float64"}  # methods of a module
_DTYPES = ("float16", "float32", "float64", "bfloat16", *_CASTS)
_MAKES_MODEL = ("from_pretrained", "get_peft_model", "prepare_model_for_kbit_training")
_OF_VECTORS = re.compile(r"\bndim\b|\bdim\(\)|norm")


def note_casts(script: Names, adapts: bool) -> None:
    """Leave the dtype of the model open if the script casts it, and say which casts are not counted.

    Args:
        script: Its settings outside of configs, and what is assumed of it, get longer.
        adapts: Whether adapters are trained, which PEFT makes float32.
    """
    models = {name for name, value in script.assigned.items() if _makes_model(value) and not name.startswith("ref")}
    tests = [node for node in script.nodes if isinstance(node, ast.If)]
    tested = {id(each): ast.unparse(node.test) for node in tests for each in node.body}
    for node in script.nodes:
        if isinstance(node, ast.Call):
            owner = owner_of(node)
            if _dtype(node) and (name_of(owner) in models or _makes_model(owner)):
                script.outside.extend(_of_model(script, node, _dtype(node)))
        elif isinstance(node, ast.Assign) and name_of(node.targets[0]) == "data" and isinstance(node.value, ast.Call):
            test = tested.get(id(node), "")
            if not _dtype(node.value) or (adapts and "requires_grad" in test and _dtype(node.value) == "float32"):
                continue
            if _OF_VECTORS.search(test):
                place = script.place(node.value, name_of(node.value.func))
                script.assumed[f"{place}: a cast of norms and biases alone is not counted"] = None
            else:
                script.outside.append(_open(script, node.value, "torch_dtype"))


def _of_model(script: Names, call: ast.Call, dtype: str) -> Iterator[Setting]:
    """What a cast of the model leaves open, unless the model is loaded in the same dtype."""
    loads = script.calls.get("from_pretrained", ())
    loaded = [name_of(k.value) for load in loads for k in load.keywords if k.arg in ("dtype", "torch_dtype")]
    if dtype not in loaded:
        yield _open(script, call, "torch_dtype")
    if dtype != "float32" and any(made.lineno < call.lineno for made in script.calls.get("get_peft_model", ())):
        if dtype == "bfloat16":
            yield Setting(script.place(call, name_of(call.func)), "arguments", "cast_adapters", dtype)
        else:
            yield _open(script, call, "cast_adapters")


def _open(script: Names, call: ast.Call, key: str) -> Setting:
    return Setting(script.place(call, name_of(call.func)), "arguments", key, unknown(key, "cast by the script"))


def _makes_model(node: ast.expr | None) -> bool:
    if not isinstance(node, ast.Call) or name_of(node.func) not in _MAKES_MODEL:
        return False
    return name_of(node.func) != "from_pretrained" or "For" in name_of(owner_of(node))


def _dtype(call: ast.Call) -> str:
    """The dtype to which a call casts, or what it is called; empty for another call.

    >>> texts = ("m.half()", "m.to('cuda')", "m.to(torch.bfloat16)", "m.to(dtype=dtype)")
    >>> [_dtype(ast.parse(text, mode="eval").body) for text in texts]
    ['float16', '', 'bfloat16', 'dtype']
    """
    name = name_of(call.func)
    if name in _CASTS and not call.args:
        return _CASTS[name]
    if name != "to":
        return ""
    parts = (*call.args, *(keyword.value for keyword in call.keywords))
    given = (name_of(node) for part in parts for node in ast.walk(part) if isinstance(node, ast.expr))
    dtype = next((each for each in given if each in _DTYPES or "dtype" in each), "")
    return _CASTS.get(dtype, dtype)
