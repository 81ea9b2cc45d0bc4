"""The literals of Python code: names that are bound once to them, and simple arithmetic with them."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.words import cleaned, is_unknown, unknown

SCOPE = "\u00b7"  # between a parameter and its function
_LARGEST = 1 << 17  # characters of a script
_DEEPEST, _MOST_PARTS = 20, 10_000
_BF16_SUPPORT = ("is_bfloat16_supported", "is_bf16_supported")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.eq, ast.IsNot: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items, ast.NotIn: lambda item, items: item not in items,
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

    def __init__(
        self,
        bound: Mapping[str, ast.expr],
        owners: Container[str] = (),
        options: Mapping[str, Any] = {},
        parameters: Mapping[str, Any] = {},
        records: Mapping[str, Mapping[str, ast.expr]] = {},
    ) -> None:
        """Take what names hold: expressions, options with their values, known values, and records with their fields."""
        self._records = records
        self._bound, self._owners, self._options, self._parameters = bound, owners, options, parameters
        self.assumed: dict[str, None] = {}
        self._left = 0

    def value(self, node: ast.expr) -> Any:
        """A literal, a name that is bound once to one, or an unknown value."""
        self._left = _MOST_PARTS
        try:
            return self._literal(node, 0)
        except ValueError:
            return unknown(shown(node), "not a literal")

    def truth(self, node: ast.expr) -> bool | None:
        """Whether a condition certainly holds, or certainly does not; ``None`` if that depends."""
        self._left = _MOST_PARTS
        try:
            return self._truth(node, 0)
        except ValueError:
            return None

    def _truth(self, node: ast.expr, depth: int) -> bool:
        if isinstance(node, ast.BoolOp):
            return self._either(node.values, isinstance(node.op, ast.Or), depth)
        value = self._literal(node, depth)
        if is_unknown(value):
            raise ValueError("not certain")
        return bool(value)

    def _either(self, nodes: Sequence[ast.expr], decides: bool, depth: int) -> bool:
        """``or`` where true decides, ``and`` where false does: one that decides is enough."""
        found: list[bool | None] = []
        for node in nodes:
            try:
                found.append(self._truth(node, depth + 1))
            except ValueError:
                found.append(None)
        if decides in found:
            return decides
        if None in found:
            raise ValueError("not certain")
        return not decides

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> bool:
        sides = [self._literal(side, depth + 1) for side in (left, right)]
        if type(op) not in _COMPARISONS or any(map(is_unknown, sides)):
            raise ValueError("not certain")
        try:
            return bool(_COMPARISONS[type(op)](*sides))
        except TypeError:
            raise ValueError("not comparable") from None

    def _text(self, parts: Sequence[ast.expr], depth: int) -> str:
        """The text of an f-string."""
        texts = [part.value if isinstance(part, ast.FormattedValue) else part for part in parts]
        values = [self._literal(text, depth + 1) for text in texts]
        plain = all(not isinstance(part, ast.FormattedValue) or part.format_spec is None for part in parts)
        if not plain or any(is_unknown(value) or not isinstance(value, str | int) for value in values):
            raise ValueError("not a literal text")
        return "".join(map(str, values))

    def _of_environment(self, call: ast.Call, depth: int) -> Any:
        """The default of a variable of the environment; those that a launcher sets are not known."""
        name, *rest = [self._literal(argument, depth + 1) for argument in call.args]
        if len(rest) != 1 or not isinstance(name, str) or re.search(r"RANK|WORLD|GPU|NODE|DEVICE|PROC", name):
            raise ValueError("not set here")
        self.assumed[f"{name} is not set in the environment ({shortened(rest[0])})"] = None
        return rest[0]

    def _literal(self, node: ast.expr, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:  # names of names multiply
            raise ValueError("too many parts")
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name(id=name) if name in self._parameters:
                return self._parameters[name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in self._owners and name in self._options:
                return self._options[name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if name in self._records.get(owner, {}):
                return self._literal(self._records[owner][name], depth + 1)
            case ast.Name(id=name) if name in self._bound:
                return self._literal(self._bound[name], depth + 1)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self._literal(item, depth + 1) for item in items]
            case ast.Dict(keys=keys, values=values) if None not in keys:
                names = [self._literal(key, depth + 1) for key in keys if key is not None]
                return {str(k): self._literal(v, depth + 1) for k, v in zip(names, values, strict=True)}
            case ast.Call():
                return self._of_call(node, depth)
        return self._computed(node, depth)

    def _computed(self, node: ast.expr, depth: int) -> Any:
        """The value of an expression with operators, a condition or parts."""
        match node:
            case ast.Subscript(value=ast.Name() as owner, slice=item):
                values, name = self._literal(owner, depth + 1), self._literal(item, depth + 1)
                if isinstance(values, dict) and name in values:
                    return values[name]
            case ast.Attribute(value=ast.Name(id="torch"), attr=dtype):
                return f"torch.{dtype}"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_number(self._literal(operand, depth + 1))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._truth(operand, depth + 1)
            case ast.BoolOp(op=op, values=[*values, last]):
                decides = isinstance(op, ast.Or)
                return self._literal(next((v for v in values if self._truth(v, depth + 1) is decides), last), depth + 1)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._compared(left, op, right, depth)
            case ast.JoinedStr(values=parts):
                return self._text(parts, depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                numbers = [_number(self._literal(side, depth + 1)) for side in (left, right)]
                return _result(type(op), *numbers)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._literal(body if self._truth(test, depth + 1) else other, depth + 1)
        raise ValueError("not a literal")

    def _of_call(self, node: ast.Call, depth: int) -> Any:
        """The value of the few calls that only convert, or that read the environment."""
        match node:
            case ast.Call(func=function, args=[], keywords=[]) if name_of(function) in _BF16_SUPPORT:
                return True  # on GPUs from Ampere on
            case ast.Call(func=ast.Name(id="int" | "float" | "str" | "bool" as kind), args=[inner], keywords=[]):
                return _cast(kind, self._literal(inner, depth + 1))
            case ast.Call(func=ast.Name(id="list" | "range" as kind), args=arguments, keywords=[]):
                return _listed(kind, [self._literal(argument, depth + 1) for argument in arguments])
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id="torch"), inner], keywords=[]):
                return f"torch.{self._literal(inner, depth + 1)}"
            case ast.Call(func=ast.Attribute(value=inner, attr="lower"), args=[], keywords=[]):
                return str(self._literal(inner, depth + 1)).lower()
            case ast.Call(func=ast.Attribute(value=ast.Name() as owner, attr="get"), args=[key, *rest]) if (
                owner.id in self._bound and len(rest) <= 1
            ):
                values = self._literal(owner, depth + 1)
                if isinstance(values, dict):
                    default = self._literal(rest[0], depth + 1) if rest else None
                    return values.get(self._literal(key, depth + 1), default)
            case ast.Call(func=ast.Attribute(attr="get" | "getenv") as function) if _reads_environment(function):
                return self._of_environment(node, depth)
        raise ValueError("not a literal")


def _cast(kind: str, value: Any) -> Any:
    """What Python's own types make of a value."""
    if is_unknown(value) or not isinstance(value, str | int | float):
        raise ValueError("not a literal")
    return {"int": int, "float": float, "str": str, "bool": bool}[kind](value)


def _listed(kind: str, arguments: list[Any]) -> list[Any]:
    """The items of a list or a range.

    >>> _listed("range", [2, 5])
    [2, 3, 4]
    """
    if kind == "list" and len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    if kind == "list" or not 1 <= len(arguments) <= 3 or any(type(number) is not int for number in arguments):
        raise ValueError("not a list")
    numbers = range(*arguments)
    if len(numbers) > _MOST_PARTS:
        raise ValueError("too many parts")
    return [*numbers]


def _reads_environment(function: ast.Attribute) -> bool:
    return ast.unparse(function) in ("os.environ.get", "os.getenv", "environ.get")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    return value


def _result(operation: type[ast.operator], left: int | float, right: int | float) -> int | float:
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
    return "nothing" if node is None else shortened(re.sub(rf"{SCOPE}\w+", "", ast.unparse(node)), 60)
