"""The statements of a Python script that certainly run, and those up to the one that trains."""

from __future__ import annotations

import ast
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from autoconf.jobs.importers.python_literals import name_of, owner_of

_OF_TRL = ("SFT", "DPO", "KTO", "ORPO", "GRPO", "Reward")
CONFIGS = (*(f"{name}Config" for name in _OF_TRL), "TrainingArguments")
TRAINERS = (*(f"{name}Trainer" for name in _OF_TRL), "Trainer")
Truth = Callable[[ast.expr], bool | None]
_PASSED_BY = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.Expr, ast.Import, ast.ImportFrom)  # never return
_DEEPEST = 10  # functions that call functions


def until_trained(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements up to the one that trains; later ones use the model, and load it or others.

    >>> [ast.unparse(s) for s in until_trained(ast.parse("trainer = T()\\ntrainer.train()\\nPeftModel()").body)]
    ['trainer = T()', 'trainer.train()']
    """
    training = {s.name for s in statements if isinstance(s, ast.FunctionDef) and any(map(_is_training, ast.walk(s)))}
    for i, statement in enumerate(statements):
        call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
        calls_function = isinstance(call, ast.Call) and any(name.id in training for name in _names([statement]))
        is_last = (_is_training(call) or calls_function) and not any(map(_trains, statements[i + 1 :]))
        if is_last and not any(map(training.__contains__, map(name_of, _names(statements[i + 1 :])))):
            return _used(statements[: i + 1])
    return [*statements]


def _is_training(node: ast.AST | None) -> bool:
    """Whether a part of a script calls a trainer's ``train``."""
    is_call = isinstance(node, ast.Call) and name_of(node.func) == "train"
    return is_call and isinstance(node, ast.Call) and "trainer" in name_of(owner_of(node)).casefold()


def _used(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements without functions that none of the others names."""
    named = Counter(name.id for name in _names(statements))
    own = {id(s): sum(n.id == s.name for n in _names([s])) for s in statements if isinstance(s, ast.FunctionDef)}
    return [
        statement
        for statement in statements
        if not isinstance(statement, ast.FunctionDef)
        or statement.decorator_list
        or named[statement.name] > own[id(statement)]
    ]


def _names(statements: Sequence[ast.stmt]) -> Iterator[ast.Name]:
    return (node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name))


def _trains(statement: ast.stmt) -> bool:
    """Whether a statement has to do with another training."""
    return any(isinstance(node, ast.Attribute) and node.attr == "train" for node in ast.walk(statement)) or any(
        isinstance(node, ast.Call) and name_of(node.func) in (*CONFIGS, *TRAINERS) for node in ast.walk(statement)
    )


def taken(statement: ast.stmt, truth: Truth) -> Iterator[ast.AST]:
    """The nodes of a statement in the order of ``ast.walk``, without branches that are certainly not taken.

    >>> statement = ast.parse("if True: f()\\nelse: g()").body[0]
    >>> [ast.unparse(n) for n in taken(statement, lambda test: True) if isinstance(n, ast.Call)]
    ['f()']
    """
    waiting: deque[ast.AST] = deque([statement])
    while waiting:
        node = waiting.popleft()
        yield node
        known = truth(node.test) if isinstance(node, (ast.If, ast.IfExp)) else None
        if known is None or not isinstance(node, ast.If | ast.IfExp):
            waiting.extend(ast.iter_child_nodes(node))
        elif isinstance(node, ast.If):
            waiting.extend(node.body if known else node.orelse)
        else:
            waiting.append(node.body if known else node.orelse)


def straight(statements: Sequence[ast.stmt], truth: Truth) -> Iterator[ast.stmt]:
    """The statements of a script and of its functions that no loop and no unknown condition leaves out.

    >>> code = "a = None\\nif True: a = 1\\nif x: a = 2"
    >>> [ast.unparse(s) for s in straight(ast.parse(code).body, lambda t: ast.unparse(t) == "True" or None)]
    ['a = None', 'a = 1']
    """
    for statement in statements:
        known = truth(statement.test) if isinstance(statement, ast.If) else None
        if isinstance(statement, ast.If) and known is not None:
            yield from straight(statement.body if known else statement.orelse, truth)
        elif isinstance(statement, ast.FunctionDef) or (
            isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"
        ):
            yield from straight(statement.body, truth)
        elif not isinstance(statement, ast.If):
            yield statement


def certain_calls(tree: ast.Module, truth: Truth = lambda test: None) -> list[ast.Call]:
    """The calls that run whenever the script does: its own, and those of functions that it, or Fire, calls once.

    Args:
        tree: The script.
        truth: Whether a condition holds; ``None`` if that is not certain.

    >>> code = "def main():\\n f(1)\\n if x: g()\\nif __name__ == '__main__':\\n main()"
    >>> [ast.unparse(call) for call in certain_calls(ast.parse(code))]
    ['main()', 'f(1)']
    """
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.decorator_list}
    if functions:
        nodes = [*ast.walk(tree)]
        used = Counter(n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
        named = Counter(node.name for node in nodes if isinstance(node, ast.FunctionDef))
        functions = {name: node for name, node in functions.items() if used[name] == named[name] == 1}
    return [*_calls(tree.body, functions, truth, _DEEPEST)]


def _calls(
    body: Sequence[ast.stmt], functions: Mapping[str, ast.FunctionDef], truth: Truth, depth: int
) -> Iterator[ast.Call]:
    for statement in body:
        value = statement.value if isinstance(statement, ast.Expr | ast.Assign | ast.Return) else None
        if isinstance(value, ast.Call):
            yield value
            runs = value.args[0] if name_of(value.func) == "Fire" and value.args else value.func
            function = functions.get(runs.id) if isinstance(runs, ast.Name) else None
            if function is not None and depth:
                yield from _calls(function.body, functions, truth, depth - 1)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            yield from _calls(statement.body, functions, truth, depth)
        elif isinstance(statement, ast.If) and (known := truth(statement.test)) is not None:
            yield from _calls(statement.body if known else statement.orelse, functions, truth, depth)
        elif (
            hasattr(statement, "body")
            and not isinstance(statement, ast.FunctionDef | ast.ClassDef)
            and _may_leave(statement)
        ):
            return


def _may_leave(statement: ast.stmt) -> bool:
    """Whether what follows a statement may not run although the script trains, which it does not after an error."""
    return any(isinstance(node, ast.Return) for node in ast.walk(statement))
