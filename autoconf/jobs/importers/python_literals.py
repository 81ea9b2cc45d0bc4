"""The literals of Python code: names that are bound once to them, and simple arithmetic with them."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.words import cleaned, unknown

_LARGEST = 1 << 18  # characters of a script
_DEEPEST, _MOST_PARTS = 20, 10_000
_BF16_SUPPORT = ("is_bfloat16_supported", "is_bf16_supported")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_LARGEST_BASE, _LARGEST_EXPONENT, _LARGEST_RESULT = 1_000, 20, 1e12


def parsed_code(text: str, file: str) -> ast.Module:
    """The syntax tree of a script.

    Raises:
        BadInput: It is not Python, or too long.
    """
    if len(text) > _LARGEST:
        raise BadInput(f"{file}: not a job's script: more than {_LARGEST:,} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python says of odd literals
            return ast.parse(cleaned(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{file}{line}: looks like a Python script, and is not the syntax of Python") from None


class Literals:
    """The values of expressions.

    >>> code = ast.parse("BATCH = 2\\nconfig = SFTConfig(per_device_train_batch_size=2 * BATCH)")
    >>> Literals({"BATCH": code.body[0].value}).value(code.body[1].value.keywords[0].value)
    4
    """

    def __init__(self, bound: Mapping[str, ast.expr]) -> None:
        self._bound = bound
        self._left = 0

    def value(self, node: ast.expr) -> Any:
        """A literal, a name that is bound once to one, or an unknown value."""
        self._left = _MOST_PARTS
        try:
            return self._literal(node, 0)
        except ValueError:
            return unknown(shown(node), "not a literal")

    def _literal(self, node: ast.expr, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:  # names of names multiply
            raise ValueError("too many parts")
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name(id=name) if name in self._bound:
                return self._literal(self._bound[name], depth + 1)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self._literal(item, depth + 1) for item in items]
            case ast.Dict(keys=keys, values=values) if None not in keys:
                names = [self._literal(key, depth + 1) for key in keys if key is not None]
                return {str(k): self._literal(v, depth + 1) for k, v in zip(names, values, strict=True)}
            case ast.Subscript(value=ast.Name() as owner, slice=item):
                values, name = self._literal(owner, depth + 1), self._literal(item, depth + 1)
                if isinstance(values, dict) and name in values:
                    return values[name]
            case ast.Attribute(value=ast.Name(id="torch"), attr=dtype):
                return f"torch.{dtype}"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_number(self._literal(operand, depth + 1))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                value = self._literal(operand, depth + 1)
                if isinstance(value, bool):
                    return not value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                numbers = [_number(self._literal(side, depth + 1)) for side in (left, right)]
                return _computed(type(op), *numbers)
            case ast.IfExp(test=test, body=body, orelse=other) if self._literal(test, depth + 1) in (True, False):
                return self._literal(body if self._literal(test, depth + 1) else other, depth + 1)
            case ast.Call(func=function, args=[], keywords=[]) if name_of(function) in _BF16_SUPPORT:
                return True  # on GPUs from Ampere on
        raise ValueError("not a literal")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


def _computed(operation: type[ast.operator], left: int | float, right: int | float) -> int | float:
    """The result of arithmetic, of a size that a setting can have."""
    if operation is ast.Pow and (abs(left) > _LARGEST_BASE or abs(right) > _LARGEST_EXPONENT):
        raise ValueError("too large")
    try:
        result: int | float = _ARITHMETIC[operation](left, right)
    except ArithmeticError:
        raise ValueError("not a number") from None
    if isinstance(result, complex) or abs(result) > _LARGEST_RESULT:
        raise ValueError("too large")
    return result


def name_of(node: ast.expr | None) -> str:
    """The last part of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def owner_of(call: ast.Call) -> ast.expr | None:
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def argument_of(call: ast.Call, name: str, place: int | None) -> ast.expr | None:
    found = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return call.args[place] if found is None and place is not None and place < len(call.args) else found


def shown(node: ast.expr | None) -> str:
    return "nothing" if node is None else shortened(ast.unparse(node), 60)
