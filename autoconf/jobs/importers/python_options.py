"""The options of a Python script: those of argparse, of transformers' HfArgumentParser, and of Fire."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.jobs.importers.python_literals import Literals, argument_of, name_of
from autoconf.jobs.importers.python_statements import CONFIGS
from autoconf.jobs.importers.words import is_unknown, unknown

PARSERS = ("HfArgumentParser", "TrlParser")  # make a config of the command's options
_PARSES = ("parse_args", "parse_known_args", "parse_args_into_dataclasses", "parse_args_and_config")
# Arguments of the Trainer that scripts ask for, with their defaults (transformers 4.55.4 and 5.23.0, training_args.py).
_OF_TRAINER = {"gradient_checkpointing": False, "bf16": False, "fp16": False, "deepspeed": None}
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None}


class Default(NamedTuple):
    """The default of an option, with its line, and whether it is one of the Trainer's own arguments."""

    value: Any
    line: int
    of_trainer: bool


class Options(NamedTuple):
    """The options of a script.

    Attributes:
        owners: The names that hold parsed options, such as ``args``.
        values: The value of each option: of the command, or else its default.
        defaults: The default of each option that the command does not give.
        config: The class of ``CONFIGS`` that the parser makes of the command; empty if it makes none.
        of_fire: The values of the parameters of the function that Fire calls.
        written: The names of argparse's options as commands write them.
        declared: The names of all options that the script itself has.
        is_open: Whether values are not known, because no command is, and the parser makes a config of its options.
    """

    owners: set[str]
    values: dict[str, Any]
    defaults: dict[str, Default]
    config: str = ""
    of_fire: Mapping[str, Any] = {}
    written: frozenset[str] | set[str] = frozenset()
    declared: frozenset[str] | set[str] = frozenset()
    is_open: bool = False


def options_in(nodes: Sequence[ast.AST], command: Mapping[str, Any] | None) -> Options:
    """The options of a script that is started with some of them.

    Args:
        nodes: All parts of the script.
        command: The options of the command; ``None`` if no command is known.

    >>> code = "p = ArgumentParser()\\np.add_argument('--lora-r', default=8)\\nargs = p.parse_args()"
    >>> nodes = [*ast.walk(ast.parse(code))]
    >>> options_in(nodes, {}).owners, options_in(nodes, {}).values, options_in(nodes, {"lora_r": "16"}).values
    ({'args'}, {'lora_r': 8}, {'lora_r': 16})
    """
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    parsers = [call for call in calls if name_of(call.func) in PARSERS]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    defaults: dict[str, Default] = {}
    config = ""
    for parser in parsers[:1]:
        named = [node.id for node in ast.walk(parser) if isinstance(node, ast.Name) and node.id not in PARSERS]
        named += [node.attr for node in ast.walk(parser) if isinstance(node, ast.Attribute)]
        for name in named:
            kind = _config_of(name, classes)
            config = kind or config
            if name in classes:
                defaults |= dict(_of_class(classes[name], bool(kind)))
    aliases: dict[str, str] = {}
    if not parsers:
        options = [(call, option) for call in calls if (option := _of_argparse(call)) is not None]
        aliases = {written: name for call, (name, _) in options for written in _written(call)}
        defaults |= dict(option for _, option in options)
    given = {aliases.get(name, name): value for name, value in (command or {}).items()}
    values: dict[str, Any] = {**_OF_TRAINER} if config else {}
    values |= {name: default.value for name, default in defaults.items()}
    values |= {name: _typed(value) for name, value in given.items() if name in values or config}
    values |= dict(_of_odd_types(calls, given)) if not parsers else {}
    left = {name: default for name, default in defaults.items() if name not in given}
    is_open = command is None and bool(config)
    if is_open:
        values, left = {name: unknown(name, "an option of the command") for name in values}, {}
    return Options(
        _owners(nodes), values, left, config, _of_fire(nodes, calls, given), {*aliases}, {*defaults}, is_open
    )


def _config_of(name: str, classes: Mapping[str, ast.ClassDef]) -> str:
    """The config that a class is or extends; empty if it is another."""
    if name in classes:
        return next((name_of(base) for base in classes[name].bases if name_of(base) in CONFIGS), "")
    return name if name in CONFIGS else ""


def _of_class(node: ast.ClassDef, of_trainer: bool) -> Iterator[tuple[str, Default]]:
    literals = Literals({})
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        value: ast.expr | None = field.value
        if isinstance(value, ast.Call) and name_of(value.func) == "field":
            factory = argument_of(value, "default_factory", None)
            value = argument_of(value, "default", None) or (
                factory.body if isinstance(factory, ast.Lambda) else factory
            )
        name = field.target.id
        known = unknown(name, "a required option") if value is None else literals.value(value)
        yield name, Default(known, field.lineno, of_trainer)


def _of_argparse(call: ast.Call) -> tuple[str, Default] | None:
    if name_of(call.func) != "add_argument":
        return None
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    long = next((name for name in names if name.startswith("--")), names[0] if names else "")
    target, given = argument_of(call, "dest", None), argument_of(call, "default", None)
    name = str(target.value) if isinstance(target, ast.Constant) else long.lstrip("-").replace("-", "_")
    action, required = argument_of(call, "action", None), argument_of(call, "required", None)
    value: Any = None if given is None else Literals({}).value(given)
    if isinstance(action, ast.Constant) and given is None:
        value = {"store_true": False, "store_false": True}.get(str(action.value))
    if required is not None or not long.startswith("-"):
        value = unknown(name, "a required option")
    return (name, Default(value, call.lineno, False)) if name else None


def _written(call: ast.Call) -> Iterator[str]:
    """The keys of the names that an option has in commands."""
    for argument in call.args:
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("-"):
            yield str(argument.value).lstrip("-").replace("-", "_")


def _of_odd_types(calls: list[ast.Call], given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options whose words argparse takes otherwise than they look: ``store_false``, and ``bool``, true of any word."""
    for call in calls:
        option = _of_argparse(call)
        if option is None or option[0] not in given:
            continue
        name, action = option[0], argument_of(call, "action", None)
        if isinstance(action, ast.Constant) and action.value == "store_false":
            yield name, False
        elif name_of(argument_of(call, "type", None)) == "bool":
            yield name, True if str(given[name]).casefold() == "true" else unknown(name, "bool of a word is true")


def _owners(nodes: Sequence[ast.AST]) -> set[str]:
    """The names that are bound to what a parser returns."""
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    parse = {*_PARSES} | {f.name for f in functions if any(_is_call(node, _PARSES) for node in ast.walk(f))}
    assigned = [node for node in nodes if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None]
    parsed: set[str] = set()
    others: set[str] = set()
    for node in assigned:
        call = node.value.value if isinstance(node.value, ast.Subscript) else node.value
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if not isinstance(target, ast.Attribute | ast.Subscript):
                names = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
                parsed, others = (parsed | names, others) if _is_call(call, parse) else (parsed, others | names)
    return parsed - others  # a name that is bound to what a function makes of options may have others


def _is_call(node: ast.AST | None, names: tuple[str, ...] | set[str]) -> bool:
    return isinstance(node, ast.Call) and name_of(node.func) in names


def _of_fire(nodes: Sequence[ast.AST], calls: list[ast.Call], given: Mapping[str, Any]) -> dict[str, Any]:
    called = {name_of(call.args[0]) for call in calls if name_of(call.func) == "Fire" and call.args}
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name in called]
    found: dict[str, Any] = {}
    for function in functions[:1]:
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        defaults = function.args.defaults
        found = dict(zip(names[len(names) - len(defaults) :], map(Literals({}).value, defaults), strict=True))
        found |= {name: _typed(given[name]) for name in names if name in given}
    return found


def _typed(value: Any) -> Any:
    """The value of a word of a command."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str) or is_unknown(value):
        return value
    if value.casefold() in _WORDS:
        return _WORDS[value.casefold()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
