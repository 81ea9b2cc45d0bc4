"""Read calls of Kubeflow's SDK in a Python script: the job that they submit, and its GPUs."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Place, Setting, settings
from autoconf.jobs.importers.kubeflow_recipes import recipe_of
from autoconf.jobs.importers.python_literals import Literals, argument_of, name_of, owner_of
from autoconf.jobs.importers.schedulers import NODES, PER_NODE, Request
from autoconf.jobs.importers.words import unknown

_SDK = "Kubeflow's SDK"
# kubeflow 0.5.0, kubeflow/trainer/types/types.py, and kubeflow-training 1.9.4, api/training_client.py: the names of the
# arguments that count, by the call.
_COUNTS = {
    "CustomTrainer": ("num_nodes", "resources_per_node", ""),
    "CustomTrainerContainer": ("num_nodes", "resources_per_node", ""),
    "TorchTuneConfig": ("num_nodes", "resources_per_node", ""),
    "Trainer": ("num_nodes", "resources_per_node", ""),  # before 0.1
    "train": ("num_workers", "resources_per_worker", "num_procs_per_worker"),
    "create_job": ("num_workers", "resources_per_worker", "num_procs_per_worker"),
}
PROCESSES = "processes of a node"
_PARAMETER, _AND_PARAMETER = 2, 3
_GPU = ("gpu", "nvidia.com/gpu")
_OF_CLIENT = ("train", "create_job")
_OTHER_RUNTIMES = ("jax", "mlx", "xgboost")


class Script(Protocol):
    """What is read of a script."""

    literals: Literals
    bound: dict[str, ast.expr]
    calls: dict[str, list[ast.Call]]
    functions: dict[str, ast.FunctionDef]
    assigned: dict[str, ast.expr]  # the last value of each name
    times: Counter[str]  # how often each name is set; a parameter counts twice

    def place(self, node: ast.expr, key: str) -> Place:
        """The place of a call or an argument."""

    def setting(self, call: ast.Call, argument: str, value: Any, key: str) -> Iterator[Setting]:
        """The setting of an argument."""


class Submission(NamedTuple):
    """A job that a script submits to Kubernetes.

    Attributes:
        settings: Those of its launcher, of the arguments of its function, and of its built-in trainer.
        requests: Its nodes, and GPUs of each.
        framework: ``torchtune`` if its trainer is built in.
        function: The name of the function that trains; empty for an image.
    """

    settings: list[Setting]
    requests: tuple[Request, ...]
    framework: str | None = None
    function: str = ""


def submission_of(script: Script) -> Submission | None:
    """The job that a script submits with Kubeflow's SDK; ``None`` if it submits none.

    Raises:
        BadInput: It submits several, or one of another framework than PyTorch.
    """
    found = [(name, call) for name in _COUNTS for call in script.calls.get(name, ()) if _submits(name, call)]
    if not found:
        return None
    if len(found) > 1:
        lines = ", ".join(str(call.lineno) for _, call in found[:9])
        raise BadInput(f"{script.place(found[1][1], found[1][0])}: {len(found)} jobs are submitted (lines {lines})")
    ((name, call),) = found
    runtime = _runtime(script)
    if other := next((kind for kind in _OTHER_RUNTIMES if kind in runtime), ""):
        raise BadInput(f"{script.place(call, 'runtime')}: a runtime of {other} is not read, only those of PyTorch")
    requests = tuple(_requests(script, name, call))
    if name == "TorchTuneConfig":
        processes = _processes(requests)
        return Submission([*recipe_of(script, call, runtime, requests), *processes], requests, "torchtune")
    function = argument_of(call, "train_func" if name in _OF_CLIENT else "func", None)
    launcher = [*_launcher(script, name, call, "deepspeed" if "deepspeed" in runtime else "torchrun")]
    arguments = [*_arguments(script, call, function)]
    return Submission([*launcher, *arguments], requests, None, name_of(function))


def counts_of(script: Script) -> dict[str, ast.expr]:
    """The expressions that count in the one submission of a script, through names that are bound once."""
    found = [(name, call) for name in _COUNTS for call in script.calls.get(name, ()) if _submits(name, call)]
    if not found:
        return {}
    name, call = found[0]
    nodes, resources, processes = _COUNTS[name]
    given = _bound(script, argument_of(call, resources, None))
    counts = {
        NODES: argument_of(call, nodes, None),
        PROCESSES: argument_of(call, processes, None) if processes else None,
    }
    for key, value in zip(given.keys, given.values, strict=True) if isinstance(given, ast.Dict) else ():
        if isinstance(key, ast.Constant) and str(key.value).casefold() in _GPU:
            counts[PER_NODE] = value
    return {what: bound for what, node in counts.items() if (bound := _bound(script, node)) is not None}


def _bound(script: Script, node: ast.expr | None) -> ast.expr | None:
    """The expression that a name is bound to once; any other expression itself."""
    return script.bound.get(node.id, node) if isinstance(node, ast.Name) else node


def _submits(name: str, call: ast.Call) -> bool:
    """Whether a call is one of the SDK's; its names are also those of other methods."""
    given = {keyword.arg for keyword in call.keywords}
    if name in _OF_CLIENT:
        return isinstance(call.func, ast.Attribute) and bool(given & {"num_workers", "resources_per_worker"})
    return name != "Trainer" or bool(given & {"resources_per_node", "num_nodes"})


def _runtime(script: Script) -> str:
    """The name of the runtime; empty if it is the default, or no literal."""
    for call in script.calls.get("train", ()):
        for argument in ("runtime", "runtime_ref"):
            node = argument_of(call, argument, None)
            node = script.bound.get(node.id, node) if isinstance(node, ast.Name) else node
            if isinstance(node, ast.Call) and name_of(node.func) == "get_runtime":
                node = argument_of(node, "name", 0)
            value = None if node is None else script.literals.value(node)
            if isinstance(value, str):
                return value
    return ""


def _requests(script: Script, name: str, call: ast.Call) -> Iterator[Request]:
    nodes, resources, _ = _COUNTS[name]
    node = argument_of(call, nodes, None)
    if node is not None:
        value = script.literals.value(node)
        yield Request(script.place(node, f"{name}: {nodes}"), str(value), NODES, "", _SDK)
    given = argument_of(call, resources, None)
    value = {} if given is None else script.literals.value(given)
    for key, number in value.items() if isinstance(value, Mapping) else ():
        if key.casefold() in _GPU:
            place = script.place(given or call, f"{name}: {resources}.{key}")
            yield Request(place, str(number), PER_NODE, "", _SDK)


def _processes(requests: Sequence[Request]) -> Iterator[Setting]:
    """One process for each GPU of all nodes."""
    counts = {request.what: request.number for request in requests}
    nodes, gpus = counts.get(NODES, "1"), counts.get(PER_NODE, "")
    if nodes.isdecimal() and gpus.isdecimal():
        yield Setting(requests[-1].place, "accelerate", "num_processes", int(nodes) * int(gpus))


def _launcher(script: Script, name: str, call: ast.Call, program: str) -> Iterator[Setting]:
    """What starts the processes: ``torchrun`` for each GPU of a node, or as many as the older client is told to."""
    nodes, _, processes = _COUNTS[name]
    yield Setting(script.place(call, name), "launcher", "program", program)
    default = 1 if name in _OF_CLIENT else unknown(nodes, "that of the runtime")
    yield _count(script, call, "nnodes", nodes, default)
    default = "auto" if name != "train" else 1
    yield _count(script, call, "nproc_per_node", processes, default)


def _count(script: Script, call: ast.Call, key: str, argument: str, default: Any) -> Setting:
    node = argument_of(call, argument, None) if argument else None
    value = default if node is None else script.literals.value(node)
    return Setting(script.place(node or call, f"{name_of(call.func)}: {argument or key}"), "accelerate", key, value)


def _arguments(script: Script, call: ast.Call, function: ast.expr | None) -> Iterator[Setting]:
    """Bind the parameters of the function to literals; yield arguments of TRL that it parses.

    The SDK passes a dict as keywords, the older client as one argument.
    """
    given = argument_of(call, "func_args", None) or argument_of(call, "parameters", None)
    passed = given.id if isinstance(given, ast.Name) else ""
    if passed and script.times[passed] in (1, _AND_PARAMETER):
        given = script.assigned.get(passed, given)
    defined = script.functions.get(name_of(function))
    if not isinstance(given, ast.Dict) or defined is None:
        return
    names = [argument.arg for argument in defined.args.args]
    pairs = zip(given.keys, given.values, strict=True)
    keys = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
    whole = {names[0]: given} if len(names) == 1 and names[0] not in keys else keys
    script.bound.update({name: whole[name] for name in names if name in whole and _is_bound_once(script, name, passed)})
    if any(_is_parsed(each, names) for each in script.calls.get("parse_dict", ())):
        values = {str(key): script.literals.value(value) for key, value in keys.items()}
        place = script.place(call, "")
        yield from settings("arguments", values, lambda key: place._replace(key=f"{name_of(call.func)}: {key}"))


def _is_bound_once(script: Script, name: str, passed: str) -> bool:
    """Whether a parameter has the value that it is passed alone, under its own name or another."""
    return script.times[name] == _PARAMETER or (name == passed and script.times[name] == _AND_PARAMETER)


def _is_parsed(call: ast.Call, names: list[str]) -> bool:
    return bool(call.args) and name_of(call.args[0]) in names and owner_of(call) is not None
