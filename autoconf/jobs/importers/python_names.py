"""The calls and names of a Python script, along the branches that may be taken."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.python_literals import SCOPE, Literals, argument_of, name_of
from autoconf.jobs.importers.python_options import options_in
from autoconf.jobs.importers.python_statements import certain_calls, straight, taken, until_trained
from autoconf.jobs.importers.python_trainers import name_own_trainers
from autoconf.jobs.importers.words import unknown

_OF_PARAMETER = _TWICE = 2
_CHANGING = ("update", "pop", "append", "extend", "setdefault", "clear", "insert", "remove")
_BINDING, _PARTS = (ast.Assign, ast.AnnAssign, ast.arg), (ast.Subscript, ast.Attribute)
_PASSES = 3  # a branch may decide a name that decides another branch


class Names:
    """The calls and names of a script.

    Attributes:
        nodes: Its parts, up to the training, without branches that are certainly not taken.
        bound: The names that are bound once, or always to the same literal, with what they are bound to.
        assigned: The same of all names, each with the first thing that it is bound to.
        times: How often each name is bound; a parameter counts as two.
        calls: The calls by the last part of the name of what they call.
        functions: The functions.
        constants: The literals anywhere in the script.
        certain: The calls that run whenever the script does.
        literals: The values of expressions.
        assumed: A sentence for each assumption.
        outside: Settings that the script makes outside of its configs.
    """

    def __init__(self, tree: ast.Module, file: str, given: Mapping[str, Any] | None) -> None:
        everything = [*ast.walk(tree)]
        name_own_trainers(everything)
        options = options_in(everything, given)
        self.file, self.options = file, options
        self.bound: dict[str, ast.expr] = {}
        self.calls: dict[str, list[ast.Call]] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.assigned: dict[str, ast.expr] = {}
        self.assumed: dict[str, None] = {}
        self.outside: list[Setting] = []
        self._classes = {node.name: node for node in everything if isinstance(node, ast.ClassDef)}
        self._set = {node.attr for node in everything if isinstance(node, ast.Attribute) and _is_set(node)}
        self._forget_set_options(everything)
        self.literals = self._literals()
        decides = any(isinstance(node, ast.If | ast.IfExp | ast.FunctionDef) for node in everything)
        for _ in range(_PASSES if decides else 1):
            self.nodes = [n for statement in until_trained(tree.body) for n in taken(statement, self.literals.truth)]
            self._collect(dict(self._arguments_of_functions()))
            self._take_instead_of_none(tree)
            self._write_out()
            self.literals = self._literals()
        self.constants = [node for node in everything if isinstance(node, ast.Constant)]
        self.certain = certain_calls(tree, self.literals.truth)

    def _forget_set_options(self, nodes: Sequence[ast.AST]) -> None:
        """Leave open the options that the script sets itself, at whatever place."""
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                own = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and _is_set(each)}
            elif isinstance(node, ast.Attribute) and _is_set(node) and name_of(node.value) in self.options.owners:
                own = {node.attr}
            else:
                continue
            self.options.values.update((option, unknown(option, "set in the script")) for option in own)

    def _literals(self) -> Literals:
        records = {name: self._fields_of(value) for name, value in self.bound.items()}
        records |= {name: self._fields_of(ast.Name(name)) for name in self._classes}
        literals = Literals(self.bound, self.options.owners, self.options.values, self.options.of_fire, records)
        literals.assumed = self.assumed
        return literals

    def place(self, node: ast.expr, key: str) -> Place:
        return Place(self.file, node.lineno, key)

    def _fields_of(self, value: ast.expr) -> Mapping[str, ast.expr]:
        """The fields of a class of the script, or of what its call makes, which the script sets nowhere else."""
        call = value if isinstance(value, ast.Call) and not value.args else None
        node = self._classes.get(name_of(call.func if call else value))
        if node is None or (call and any(keyword.arg is None for keyword in call.keywords)):
            return {}
        fields = {name: given for field in node.body for name, given in _field(field)}
        fields |= {str(keyword.arg): keyword.value for keyword in (call.keywords if call else ())}
        return {name: given for name, given in fields.items() if name not in self._set}

    def is_record(self, name: str) -> bool:
        """Whether a name holds an object of a class of the script."""
        value = self.bound.get(name)
        return isinstance(value, ast.Call) and name_of(value.func) in self._classes

    def _collect(self, passed: Mapping[int, ast.expr]) -> None:
        """Collect the calls, the functions and the names, given what functions that are called once are passed."""
        self.calls, self.functions, self.assigned = {}, {}, {}
        self.times: Counter[str] = Counter()
        of_classes = {id(each) for node in self.nodes if isinstance(node, ast.ClassDef) for each in _fields(node)}
        alike: Counter[str] = Counter()  # how often a name is bound to the same literal, at least once
        for node in self.nodes:
            if of_classes and id(node) in of_classes:  # a field, not a name
                continue
            if isinstance(node, ast.Call):
                self.calls.setdefault(name_of(node.func), []).append(node)
            elif isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self.times[node.id] += 1
            elif isinstance(node, ast.alias):
                self.times[node.asname or node.name] += 1
            elif isinstance(node, ast.arg) and id(node) not in passed:
                self.times[node.arg] += _OF_PARAMETER  # it may be anything
            for name, value in _bindings(node, passed) if isinstance(node, _BINDING) else ():
                self.times[name] += isinstance(node, ast.arg)
                before = self.assigned.setdefault(name, value)
                same = isinstance(before, ast.Constant) and ast.dump(before) == ast.dump(value)
                alike[name] += 1 if before is value or same else 0
        changed = {name_of(node.value) for node in self.nodes if isinstance(node, _PARTS) and _is_changed(node)}
        self.bound = {
            name: value
            for name, value in self.assigned.items()
            if self.times[name] == alike[name] and not (name in changed and _is_mutable(value))
        }

    def _take_instead_of_none(self, tree: ast.Module) -> None:
        """Bind a name that is first None and then something else, where the latter certainly runs."""
        for statement in straight(tree.body, self.literals.truth):
            name = name_of(statement.targets[0]) if isinstance(statement, ast.Assign) else ""
            first = self.assigned.get(name)
            if isinstance(first, ast.Constant) and first.value is None and self.times[name] == _TWICE:
                self.bound |= {name: statement.value} if isinstance(statement, ast.Assign) else {}

    def _write_out(self) -> None:
        """Put the keywords that a call takes from a literal dict, as ``**kwargs``, in its own."""
        for call in (call for calls in self.calls.values() for call in calls):
            for keyword in [keyword for keyword in call.keywords if keyword.arg is None]:
                named = self.bound.get(name_of(keyword.value), keyword.value)
                keys = named.keys if isinstance(named, ast.Dict) else [None]
                texts = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
                if isinstance(named, ast.Dict) and len(texts) == len(keys):
                    call.keywords.remove(keyword)
                    call.keywords += [ast.keyword(k, v) for k, v in zip(texts, named.values, strict=True)]

    def _arguments_of_functions(self) -> Iterator[tuple[int, ast.expr]]:
        """What each parameter of a function that is called once is certainly passed."""
        for name, function in self.functions.items():
            calls = [call for call in self.calls.get(name, ()) if isinstance(call.func, ast.Name)]
            places = function.args
            if len(calls) != 1 or function.decorator_list or places.vararg or places.kwarg or places.posonlyargs:
                continue
            if any(keyword.arg is None for keyword in calls[0].keywords):
                continue
            defaults = [*[None] * (len(places.args) - len(places.defaults)), *places.defaults]
            keyword_only = zip(places.kwonlyargs, [None] * len(places.kwonlyargs), places.kw_defaults, strict=True)
            for parameter, place, default in [*zip(places.args, range(99), defaults, strict=False), *keyword_only]:
                value = argument_of(calls[0], parameter.arg.partition(SCOPE)[0], place) or default
                _rename(function, parameter)
                if isinstance(value, ast.Name) and value.id in self.options.owners:
                    self.options.owners.add(parameter.arg)
                if value is not None:
                    yield id(parameter), value


def _field(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """A field of a class with its default."""
    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        value: ast.expr | None = statement.value
        if isinstance(value, ast.Call) and name_of(value.func) == "field":
            factory = argument_of(value, "default_factory", None)
            value = argument_of(value, "default", None) or (factory.body if isinstance(factory, ast.Lambda) else None)
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if isinstance(target, ast.Name) and value is not None:
                yield target.id, value


def _is_changed(node: ast.AST) -> TypeGuard[ast.Subscript | ast.Attribute]:
    """Whether a part of a script sets an item or an attribute of a name, or calls a method that may."""
    if isinstance(node, ast.Subscript):
        return not isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.Attribute) and (not isinstance(node.ctx, ast.Load) or node.attr in _CHANGING)


def _is_mutable(value: ast.expr) -> bool:
    return isinstance(value, ast.Dict | ast.List) or (isinstance(value, ast.Call) and name_of(value.func) == "dict")


def _rename(function: ast.FunctionDef, parameter: ast.arg) -> None:
    """Give a parameter a name that no other function has."""
    if SCOPE not in parameter.arg:
        name, parameter.arg = parameter.arg, f"{parameter.arg}{SCOPE}{function.name}"
        for node in (node for statement in function.body for node in ast.walk(statement)):
            if isinstance(node, ast.Name) and node.id == name:
                node.id = parameter.arg


def _fields(node: ast.ClassDef) -> Iterator[ast.AST]:
    """The fields of a class, and their names."""
    for field in node.body:
        if isinstance(field, ast.Assign | ast.AnnAssign):
            yield field
            yield from field.targets if isinstance(field, ast.Assign) else [field.target]


def _bindings(node: ast.AST, passed: Mapping[int, ast.expr]) -> Iterator[tuple[str, ast.expr]]:
    """The names that a node binds, with what it binds them to; a parameter that is passed its own name binds none."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))
    elif isinstance(node, ast.arg) and id(node) in passed:
        value = passed[id(node)]
        if not isinstance(value, ast.Name) or value.id != node.arg:
            yield node.arg, value


def _is_set(node: ast.Attribute) -> bool:
    """Whether an attribute is given a value, or deleted."""
    return not isinstance(node.ctx, ast.Load)
