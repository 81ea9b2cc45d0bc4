"""Command lines that start a training, as scripts and manifests have them: split and told into settings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Place, Setting, job_keys, settings

# Options of the launchers that take no value: accelerate v1.14.0, commands/launch.py; torch 2.13, distributed/run.py.
_FLAGS = (
    "quiet", "cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_parallelism_config", "use_megatron_lm", "m",
    "module", "no_python", "debug", "enable_cpu_affinity", "same_network", "dynamo_use_fullgraph", "dynamo_use_dynamic",
    "dynamo_use_regional_compilation", "tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "standalone", "run_path",
)  # fmt: skip
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\((\w+)\))")
_REDIRECTION = re.compile(r"\d*[<>]+&?(.*)", re.DOTALL)
_PREFIXES = ("exec", "nohup", "time", "sudo", "env", "export", "then", "do")
_TELLING = ("model_name_or_path", "per_device_train_batch_size")  # of a script of nobody's that we know


class Launch(NamedTuple):
    """A command that starts a training."""

    framework: str | None  # of ``job_keys.yaml``, if the command tells
    settings: list[Setting]
    script: str = ""


def launch_in_script(script: str, place: Callable[[str], Place], variables: Mapping[str, str]) -> Launch | None:
    """The training that a shell script starts; ``None`` if it starts none.

    Args:
        script: its text.
        place: the place of an option.
        variables: the environment; assignments in the script come on top.

    Raises:
        BadInput: it starts more than one, or a quotation does not end.

    >>> script = "LR=1e-5\\ntrl sft --optim sgd \\\\\\n --learning_rate $LR"
    >>> launch = launch_in_script(script, lambda option: Place("run.sh", None, option), {})
    >>> launch.framework, [(s.key, s.value) for s in launch.settings]
    ('trl', [('program', 'trl'), ('optim', 'sgd'), ('learning_rate', '1e-5')])
    """
    known = dict(variables)
    found = []
    for words in _commands(script, place):
        words = [_expanded(word, known) for word in words]
        while words and (words[0] in _PREFIXES or _ASSIGNMENT.fullmatch(words[0])):
            if assignment := _ASSIGNMENT.fullmatch(words[0]):
                known[assignment[1]] = assignment[2]
            words = words[1:]
        if words and re.match(r"--[A-Za-z]", words[0]):
            raise BadInput(f"{place(words[0])}: an option without a command; is the line before it continued?")
        if launch := launch_of(words, place, known):
            found.append(launch)
    if len(found) > 1:
        raise BadInput(f"{place('')}: {len(found)} commands start a training; one is a job")
    return found[0] if found else None


def _commands(script: str, place: Callable[[str], Place]) -> Iterator[list[str]]:
    """The simple commands of a script, each as its words."""
    lines = ""
    unfinished = None
    for line in re.sub(r"\\[ \t]*\r?\n", " ", script).splitlines():
        lines += f"{line}\n"
        lexer = shlex.shlex(lines, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError as error:  # a quotation goes on in the next line
            unfinished = error
            continue
        lines, unfinished = "", None
        command: list[str] = []
        to_file = False  # whether the next word names what output goes to
        for word in words:
            redirection = _REDIRECTION.fullmatch(word)
            if not word.strip(";&|"):
                yield command
                command = []
            elif not redirection and not to_file:
                command.append(word)
            to_file = redirection is not None and not redirection[1]
        yield command
    if unfinished is not None:
        raise BadInput(f"{place('')}: not a command line: {unfinished}")


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda m: variables.get(m[1] or m[2] or m[3], m[0]), word)


def launch_of(words: Sequence[str], place: Callable[[str], Place], variables: Mapping[str, str]) -> Launch | None:
    """The training that one command starts; ``None`` if it starts none. Arguments as ``launch_in_script`` has them."""
    words = [_expanded(word, variables) for word in words]
    if not words:
        return None
    program, rest = words[0].rpartition("/")[2], words[1:]
    if program in ("sh", "bash") and len(rest) > 1 and re.fullmatch(r"-\w*c", rest[0]):
        return launch_in_script(rest[1], place, variables)
    if re.fullmatch(r"python[\d.]*", program):
        program = "python"
        rest = [word for word in rest if word != "-u"]
        if rest[:2] in (["-m", "accelerate.commands.launch"], ["-m", "torch.distributed.run"]):
            program, rest = ("accelerate-launch" if "accelerate" in rest[1] else "torchrun"), rest[2:]
    if program == "accelerate" and rest[:1] == ["launch"]:
        program, rest = "accelerate-launch", rest[1:]
    if program in ("trl", "axolotl"):
        wanted = "sft" if program == "trl" else "train"
        return _framework_launch(program, rest[1:], place) if rest[:1] == [wanted] else None
    if program not in ("accelerate-launch", "torchrun", "python", "deepspeed"):
        return None
    launcher = program.removesuffix("-launch")
    options, script, arguments = _launcher(rest)
    if not script.endswith(".py") and not any(_key(name) in ("m", "module") for name, _ in options):
        if launcher in ("python", "torchrun"):
            return None
        raise BadInput(f"{place(launcher)}: which script is launched cannot be told")
    launch = _script_launch(launcher, options, script, arguments, place)
    return launch and launch._replace(settings=[*launch.settings, *_environment(variables, place)])


def _environment(variables: Mapping[str, str], place: Callable[[str], Place]) -> Iterator[Setting]:
    table = job_keys().dialects["environment"]
    return (Setting(place(name), "environment", name, value) for name, value in variables.items() if table.find(name))


def _framework_launch(program: str, words: Sequence[str], place: Callable[[str], Place]) -> Launch:
    """``trl sft`` takes accelerate's options beside its own, ``axolotl train`` a file."""
    dialect = "arguments" if program == "trl" else "axolotl"
    said = [Setting(place(program), "launcher", "program", program)]
    if program == "axolotl" and words and not words[0].startswith("-"):
        said.append(Setting(place(words[0]), "axolotl", "config", words[0]))
    return Launch(program, [*said, *_said(_options(words), dialect, place)])


def _launcher(words: Sequence[str]) -> tuple[list[tuple[str, Any]], str, Sequence[str]]:
    """A launcher's own options, the script or module, and what follows it."""
    options: list[tuple[str, Any]] = []
    i = 0
    while i < len(words) and words[i].startswith("-"):
        name, equals, value = words[i].partition("=")
        if equals or name.lstrip("-").replace("-", "_") in _FLAGS:
            options.append((name, value if equals else True))
            i += 1
        else:
            options.append((name, words[i + 1] if i + 1 < len(words) else True))
            i += 2
    return options, words[i] if i < len(words) else "", words[i + 1 :]


def _script_launch(
    launcher: str, options: list[tuple[str, Any]], script: str, words: Sequence[str], place: Callable[[str], Place]
) -> Launch | None:
    framework = next(
        (
            name
            for name, known in job_keys().frameworks.items()
            if any(script == s or script.endswith(f"/{s}") for s in known.scripts)
        ),
        None,
    )
    arguments = list(_options(words))
    names = [_key(name) for name, _ in arguments]
    if framework is None and not any(name in names for name in _TELLING) and launcher in ("python", "torchrun"):
        return None
    said = [Setting(place(launcher), "launcher", "program", launcher)]
    if launcher != "python":
        said += _said(options, "accelerate", place)
    if framework == "axolotl":
        said += [Setting(place(words[0]), "axolotl", "config", words[0])] if words and words[0][:1] != "-" else []
        return Launch(framework, [*said, *_said(arguments, "axolotl", place)])
    return Launch(framework, [*said, *_said(arguments, "arguments", place)], script)


def _options(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Options of a script with their values, as argparse takes them: none, one or several."""
    i = 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        i += 1
        if not _is_option(name):
            continue  # a bare word, such as a configuration's path
        values = [value] if equals else []
        while not equals and i < len(words) and not _is_option(words[i]):
            values.append(words[i])
            i += 1
        yield name, True if not values else values[0] if len(values) == 1 else values


def _is_option(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _said(
    options: Sequence[tuple[str, Any]] | Iterator[tuple[str, Any]], dialect: str, place: Callable[[str], Place]
) -> Iterator[Setting]:
    dialects = job_keys().dialects
    for name, value in options:
        key, where = _key(name), place(name)
        if key.startswith("no_") and dialects[dialect].find(key) is None and dialects[dialect].find(key[3:]):
            key, value = key[3:], False  # as transformers' HfArgumentParser writes a flag that is on by default
        if isinstance(value, str) and value.startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                raise BadInput(f"{where}: {value!r}: not JSON") from None
        launchers = (
            dialect == "arguments" and dialects[dialect].find(key) is None and not dialects[dialect].ignores(key)
        )
        of = (
            "accelerate"
            if launchers and (dialects["accelerate"].find(key) or dialects["accelerate"].ignores(key))
            else dialect
        )
        yield from (setting._replace(place=where) for setting in settings(of, {key: value}, place))
