"""Classes of a script that extend a trainer without changing what it holds."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from autoconf.jobs.importers.python_literals import name_of, owner_of
from autoconf.jobs.importers.python_statements import TRAINERS

# Methods that log, save, evaluate or load samples (transformers 5.23.0, src/transformers/trainer.py).
_HARMLESS = {
    "log", "log_metrics", "save_metrics", "save_model", "save_state", "_save", "_save_checkpoint", "evaluate",
    "evaluation_loop", "prediction_step", "prediction_loop", "predict", "get_train_dataloader", "get_eval_dataloader",
    "get_test_dataloader", "_get_train_sampler", "_get_eval_sampler", "create_scheduler", "_load_from_checkpoint",
    "_load_best_model", "_maybe_log_save_evaluate",
}  # fmt: skip
_OF_LOSS = {"model", "super", "compute_loss", "get", "pop", "item", "log", "print", "append", "isinstance"}
_PLAIN = (ast.Constant, ast.List, ast.Dict)
_NONE = "own trainer"  # no name of Python


def name_own_trainers(nodes: Sequence[ast.AST]) -> None:
    """Let calls of a script's own classes have the names of the trainers that they are.

    Args:
        nodes: All parts of the script, whose calls are changed. A class of its own that changes what a trainer holds,
            or that only has its name, gets a name that is none of a trainer.

    >>> code = ast.parse("class Mine(SFTTrainer):\\n def log(self): pass\\nclass Trainer: pass\\nMine()\\nTrainer()")
    >>> name_own_trainers([*ast.walk(code)])
    >>> [name_of(node.func) for node in ast.walk(code) if isinstance(node, ast.Call)]
    ['SFTTrainer', 'own trainer']
    """
    classes = {node.name: _base(node) for node in nodes if isinstance(node, ast.ClassDef)}
    names = {name: base for name, base in classes.items() if base or name in TRAINERS}
    for node in nodes if names else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            node.func = ast.copy_location(ast.Name(names[node.func.id] or _NONE, ast.Load()), node.func)


def _base(node: ast.ClassDef) -> str:
    """The trainer that a class is but for what changes no memory; empty if it is none."""
    base = next((name_of(base) for base in node.bases if name_of(base) in TRAINERS), "")
    return base if base and all(map(_is_harmless, node.body)) else ""


def _is_harmless(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.FunctionDef):
        return isinstance(statement, ast.Expr | ast.Pass)
    if statement.name == "compute_loss":
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        return all(name_of(call.func) in _OF_LOSS for call in calls)
    return statement.name in _HARMLESS or (statement.name == "__init__" and all(map(_only_begins, statement.body)))


def _only_begins(statement: ast.stmt) -> bool:
    """Whether a statement of ``__init__`` calls that of the trainer, or sets a literal."""
    match statement:
        case ast.Expr(value=ast.Call() as call):
            return name_of(call.func) == "__init__" and isinstance(owner_of(call), ast.Call)
        case ast.Assign(value=value) | ast.AnnAssign(value=value):
            return isinstance(value, _PLAIN)
    return isinstance(statement, ast.Expr)
