"""The statements of a Python script that certainly run, and those up to the one that trains."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from autoconf.jobs.importers.python_literals import name_of, owner_of

_OF_TRL = ("SFT", "DPO", "KTO", "ORPO", "GRPO", "Reward")
CONFIGS = (*(f"{name}Config" for name in _OF_TRL), "TrainingArguments")
TRAINERS = (*(f"{name}Trainer" for name in _OF_TRL), "Trainer")
_DEEPEST = 10  # functions that call functions


def until_trained(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements up to the one that trains; later ones use the model, and load it or others.

    >>> [ast.unparse(s) for s in until_trained(ast.parse("trainer = T()\\ntrainer.train()\\nPeftModel()").body)]
    ['trainer = T()', 'trainer.train()']
    """
    for i, statement in enumerate(statements):
        call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
        if not isinstance(call, ast.Call) or name_of(call.func) != "train":
            continue
        if "trainer" in name_of(owner_of(call)).casefold() and not any(map(_trains, statements[i + 1 :])):
            return [*statements[: i + 1]]
    return [*statements]


def _trains(statement: ast.stmt) -> bool:
    """Whether a statement has to do with another training."""
    return any(isinstance(node, ast.Attribute) and node.attr == "train" for node in ast.walk(statement)) or any(
        isinstance(node, ast.Call) and name_of(node.func) in (*CONFIGS, *TRAINERS) for node in ast.walk(statement)
    )


def certain_calls(tree: ast.Module) -> list[ast.Call]:
    """The calls that run whenever the script does: its own, and those of functions that it calls once.

    >>> code = "def main():\\n f(1)\\n if x: g()\\nif __name__ == '__main__':\\n main()"
    >>> [ast.unparse(call) for call in certain_calls(ast.parse(code))]
    ['main()', 'f(1)']
    """
    used = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    named = Counter(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
        if used[node.name] == named[node.name] == 1
    }
    return [*_calls(tree.body, functions, _DEEPEST)]


def _calls(body: Sequence[ast.stmt], functions: Mapping[str, ast.FunctionDef], depth: int) -> Iterator[ast.Call]:
    for statement in body:
        value = statement.value if isinstance(statement, ast.Expr | ast.Assign | ast.Return) else None
        if isinstance(value, ast.Call):
            yield value
            function = functions.get(value.func.id) if isinstance(value.func, ast.Name) else None
            if function is not None and depth:
                yield from _calls(function.body, functions, depth - 1)
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            yield from _calls(statement.body, functions, depth)
        elif not isinstance(statement, ast.FunctionDef | ast.ClassDef) and _may_leave(statement):
            return


def _may_leave(statement: ast.stmt) -> bool:
    """Whether what follows a statement may not run."""
    return any(isinstance(node, ast.Return | ast.Raise) for node in ast.walk(statement))
