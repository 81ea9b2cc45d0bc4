"""Commands that start a training: what runs them, the launcher, the script, and their options as settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.axolotl_command import axolotl_command
from autoconf.jobs.importers.called_scripts import RUNNERS, SHELLS
from autoconf.jobs.importers.key_table import Place, Setting, job_keys
from autoconf.jobs.importers.launch_environment import check_processes, environment_settings
from autoconf.jobs.importers.launch_options import (
    ASSIGNMENT_OF_KEY,
    CONFIG_SUFFIXES,
    PlaceOf,
    is_option,
    key_of,
    option_settings,
    options_of,
)
from autoconf.jobs.importers.objectives import hint, objective_in, refuse_objective
from autoconf.jobs.importers.other_files import OTHER_MODULES, OTHER_TOOLS, STARTS, is_other_step, nearest
from autoconf.jobs.importers.shell import Command, Script, follow
from autoconf.jobs.importers.torchtune import OF_COMPONENTS
from autoconf.jobs.importers.words import described, is_unknown

# Options of the launchers that take no value: accelerate v1.14.0, commands/launch.py; torch 2.13, distributed/run.py;
# deepspeed 0.19.8, launcher/runner.py.
_FLAGS = (
    "quiet", "cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_parallelism_config", "use_megatron_lm", "m",
    "module", "no_python", "debug", "enable_cpu_affinity", "same_network", "dynamo_use_fullgraph", "dynamo_use_dynamic",
    "dynamo_use_regional_compilation", "tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "standalone", "run_path",
    "no_local_rank", "no_ssh", "no_ssh_check", "force_multi", "save_pid", "bind_cores_to_rank", "elastic_training",
    "use_env",
)  # fmt: skip
_OF_TRL = ("dpo", "reward", "kto", "grpo")  # commands of TRL that train with another loss
_LLAMA_FACTORY = ("llamafactory-cli", "lmf")
_LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "deepspeed", "trl", "axolotl", *_LLAMA_FACTORY}
_TELLING = ("model_name_or_path", "per_device_train_batch_size", "deepspeed")
_OF_PEFT = {"use_peft_lora", "use_4bit_quantization"}  # keys of PEFT's example, which many scripts are copies of
NO_FILE = "give the job by options instead of --job"
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
# What starts a command once for each task; a script itself runs once.
_STARTERS = re.compile(r"^[^#\n]*\b(?:srun|mpirun|mpiexec|jsrun|ibrun|blaunch)\s", re.MULTILINE)


class Launch(NamedTuple):
    """A command that starts a training.

    Attributes:
        framework: The trainer of ``job_keys.yaml``, if the command names one.
        settings: Its options, and those of its launcher and environment.
        script: The script or module that it starts.
        files: The text of each file that the same script writes.
        assumed: A sentence for each default of a variable.
        line: The line of the command, if it is in a script.
        called: Other scripts that its script runs or sources.
    """

    framework: str | None
    settings: list[Setting]
    script: str = ""
    files: Mapping[str, str] = {}
    assumed: tuple[str, ...] = ()
    line: int | None = None
    called: tuple[str, ...] = ()


def launch_in_script(
    script: str, place: PlaceOf, variables: Mapping[str, str], first_line: int | None = None, only: int | None = None
) -> Launch | None:
    """The training that a shell script starts; ``None`` if it starts none.

    Args:
        script: Its text.
        place: The place of an option.
        variables: The environment; assignments in the script come on top.
        first_line: The line where the script starts, ``None`` if the lines of places do not follow from its own.
        only: The line of the one command to read; ``None`` for the only one.

    Raises:
        BadInput: It starts more than one, or is not bash.

    >>> script = "LR=1e-5\\ntrl sft --optim sgd \\\\\\n --learning_rate $LR"
    >>> launch = launch_in_script(script, lambda option: Place("run.sh", None, option), {}, 1)
    >>> launch.framework, [(s.key, s.value) for s in launch.settings]
    ('trl', [('program', 'trl'), ('optim', 'sgd'), ('learning_rate', '1e-5')])
    """
    followed = follow(script, place("").file, variables)
    found = []
    for command in followed.commands:
        where = _places(command, place, first_line)
        if re.match(r"--?[A-Za-z]", command.words[0]):
            raise BadInput(
                f"{where(command.words[0])}: an option without a command; the line before it must end in a backslash"
            )
        if launch := launch_of(command.words, where, command.variables):
            found.append(launch._replace(line=None if first_line is None else command.lines[0]))
    found = _different(found)
    chosen = [launch for launch in found if launch.line == only]
    if len(found) > 1 and len(chosen) != 1:
        lines = [str(launch.line) for launch in found]
        at = f" (lines {', '.join(lines)})" if first_line is not None else ""
        way = (
            f"give the line of one, --job {place('').file}:{lines[-1]}"
            if at
            else "keep one in a separate file for --job"
        )
        raise BadInput(f"{place('')}: {len(found)} commands start a training{at}; {way}")
    found = chosen or found
    if not found:
        _check_called(followed, place("").file, first_line)
        return None
    return found[0]._replace(
        settings=_on_tasks(found[0].settings) if _STARTERS.search(script) else found[0].settings,
        files={**followed.files, **found[0].files},
        assumed=(*followed.assumed, *found[0].assumed),
        called=(*followed.called, *found[0].called),
    )


def _on_tasks(settings: Sequence[Setting]) -> list[Setting]:
    """The settings of a command that runs once for each task, where it is Python without a launcher."""
    alone = ("launcher", "program", "python")
    return [s._replace(value="tasks") if (s.dialect, s.key, s.value) == alone else s for s in settings]


def _check_called(script: Script, file: str, first_line: int | None) -> None:
    """Name a script that may start the training, where no command here does and it cannot be read."""
    for name, line in script.not_found.items() if first_line is not None else ():
        raise BadInput(
            f"{file}:{line}: runs {described(name)}, which is not in the folder of {file}; give that script by --job "
            "instead of this one"
        )


def _different(launches: Sequence[Launch]) -> list[Launch]:
    """Launches without repetitions, as a function that is called twice has them."""
    kept: dict[Any, Launch] = {}
    for launch in launches:
        key = (launch.framework, launch.script, repr([(s.dialect, s.key, s.value) for s in launch.settings]))
        kept.setdefault(key, launch)
    return list(kept.values())


def _places(command: Command, place: PlaceOf, first_line: int | None) -> PlaceOf:
    """The places of the options of one command."""

    lines: dict[str, int] = {}
    for word, line in zip(command.words, command.lines, strict=True):
        lines.setdefault(word.partition("=")[0], line)
    of_other = bool(command.file) and command.file != place("").file

    def where(option: str) -> Place:
        found = place(described(option))
        if of_other:
            found = Place(command.file, None, described(option))
        if first_line is None and not of_other:
            return found
        first = 1 if of_other or first_line is None else first_line
        return found._replace(line=lines.get(option, command.lines[0]) + first - 1)

    return where


def launch_of(words: Sequence[str], place: PlaceOf, variables: Mapping[str, str]) -> Launch | None:
    """The training that one command starts, seen through what runs it; ``None`` if it starts none.

    >>> words = "srun --ntasks 1 uv run accelerate launch --num_processes 4 train.py --model_name_or_path m".split()
    >>> launch_of(words, lambda option: Place("run.sh", 3, option), {}).script
    'train.py'
    """
    words = [_with_variables(word, variables) for word in words]
    while words:
        if assignment := _ASSIGNMENT.fullmatch(words[0]):
            variables = {**variables, assignment[1]: assignment[2]}
            words = words[1:]
            continue
        program = words[0].rpartition("/")[2]
        if program in RUNNERS:
            words = _behind(program, words[1:])
        elif behind := _behind_dashes(words):
            words = behind
        else:
            break
    if not words:
        return None
    if is_unknown(words[0]) and any(word.lstrip("-").partition("=")[0] in _TELLING for word in words):
        raise BadInput(f"{place(words[0])}: which program starts the training is not certain; {NO_FILE}")
    program, rest = words[0].rpartition("/")[2], list(words[1:])
    if program in SHELLS:
        return _in_shell(rest, place, variables)
    return _launched(program, rest, place, variables)


def _with_variables(word: str, variables: Mapping[str, str]) -> str:
    """A word of a manifest, in which ``$(NAME)`` is a variable of the container."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), word)


def _behind(program: str, words: Sequence[str]) -> list[str]:
    """The command that another program runs: from the first word that is a program known here."""
    if program == "command" and words[:1] and words[0] in ("-v", "-V"):  # says where a program is
        return []
    for i, word in enumerate(words):
        name = word.rpartition("/")[2]
        is_program = name in RUNNERS | SHELLS | _LAUNCHERS | set(OTHER_TOOLS) or _is_python(name)
        after_option = i > 0 and words[i - 1].startswith("-") and "=" not in words[i - 1]
        if is_program and not (after_option and name in ("python", "sh", "bash", "time", "script", "do", "then")):
            return list(words[i:])
        if program in ("uv", "poetry", "pipenv", "hatch", "pixi") and word.endswith(".py"):
            return ["python", *words[i:]]
        if program in ("env", "sudo") and _ASSIGNMENT.fullmatch(word):
            return list(words[i:])
    return []


def _behind_dashes(words: Sequence[str]) -> list[str]:
    """The command after ``--``, which the words before it submit to another machine."""
    for i, word in enumerate(words[:-1]):
        name = words[i + 1].rpartition("/")[2]
        if word == "--" and i and (name in RUNNERS | SHELLS | _LAUNCHERS or _is_python(name)):
            return list(words[i + 1 :])
    return []


def _is_python(program: str) -> bool:
    return re.fullmatch(r"python[\d.]*", program) is not None


def _in_shell(words: Sequence[str], place: PlaceOf, variables: Mapping[str, str]) -> Launch | None:
    """The training in ``bash -c "..."``, after any other options."""
    for i, word in enumerate(words):
        if re.fullmatch(r"-[a-z]*c", word):
            script, *arguments = words[i + 1 :] or [""]
            given = {name: value for name, value in variables.items() if not name.isdigit()}
            return launch_in_script(script, place, {**given, **{str(n): word for n, word in enumerate(arguments)}})
        if not word.startswith(("-", "+")) and (
            i == 0 or words[i - 1] not in ("-o", "-euo", "-eo", "-uo", "-exo", "-euxo")
        ):
            return None
    return None


def _launched(program: str, rest: list[str], place: PlaceOf, variables: Mapping[str, str]) -> Launch | None:
    if _is_python(program):
        program = "python"
        rest = [word for word in rest if not re.fullmatch(r"-[uOBEsIW]+", word)]
        module = rest[1] if rest[:1] == ["-m"] and len(rest) > 1 else ""
        if module in ("accelerate.commands.launch", "torch.distributed.run", "torch.distributed.launch"):
            program, rest = ("accelerate-launch" if "accelerate" in module else "torchrun"), rest[2:]
        elif rest and rest[0].rpartition("/")[2] in ("torchrun", "accelerate"):
            program, rest = rest[0].rpartition("/")[2], rest[1:]
    if program == "accelerate":
        if rest[:1] != ["launch"]:
            return None
        program, rest = "accelerate-launch", rest[1:]
    if program == "tune" and rest[:1] == ["run"]:
        return _tune(rest[1:], place)
    if program == "swift" and rest[:1] == ["sft"]:
        program = "ms-swift"
    elif program == "swift" and rest[:1] in (["rlhf"], ["pt"]):
        kind = dict((key_of(name), value) for name, value in options_of(rest)).get("rlhf_type", rest[0])
        refuse_objective(place(program), f"swift {rest[0]} ({described(str(kind))})")
    if program in OTHER_TOOLS and (program not in STARTS or (rest[:1] and rest[0] in STARTS[program])):
        _refuse_tool(place(program), OTHER_TOOLS[program])
    if program in _LLAMA_FACTORY:
        program = "llama-factory"
    if program == "axolotl" and rest[:1] == ["train"]:
        program, rest = axolotl_command(rest)
    if program in ("trl", "axolotl", "llama-factory", "ms-swift"):
        launch = _framework_launch(program, rest, place, variables)
        return launch and launch._replace(settings=[*launch.settings, *environment_settings(variables, place)])
    if program not in ("accelerate-launch", "torchrun", "python", "deepspeed"):
        return None
    launch = _script_launch(program.removesuffix("-launch"), rest, place)
    return launch and launch._replace(settings=[*launch.settings, *environment_settings(variables, place)])


def _refuse_tool(place: Place, tool: str) -> None:
    raise BadInput(f"{place}: a command of {tool}, which is not read; {nearest(tool)}")


def _tune(words: Sequence[str], place: PlaceOf) -> Launch | None:
    """``tune run`` of a recipe that fine-tunes, with a config that is a file; torchtune's own configs are not read."""
    launcher, recipe, rest = _launcher(words)
    if objective := objective_in(recipe):
        refuse_objective(place(recipe), objective)
    arguments = {key_of(name): (name, value) for name, value in options_of(rest)}
    config = str(arguments.pop("config", ("", ""))[1])
    if "finetune" not in recipe or not config.endswith((".yaml", ".yml")):
        _refuse_tool(place("tune"), OTHER_TOOLS["tune"])
    for name, _ in arguments.values():
        if key_of(name).endswith("._component_") or key_of(name) in OF_COMPONENTS:
            raise BadInput(f"{place(name)}: write this key in the recipe, because it decides others")
    found = [
        Setting(place("tune"), "launcher", "program", "tune"),
        Setting(place(config), "torchtune", "config", config),
    ]
    found += option_settings(launcher, "accelerate", place)
    return Launch("torchtune", [*found, *option_settings(arguments.values(), "torchtune", place)], recipe)


def _framework_launch(
    program: str, words: Sequence[str], place: PlaceOf, variables: Mapping[str, str]
) -> Launch | None:
    """``trl sft`` takes accelerate's options besides its own, ``axolotl train`` and LLaMA-Factory's command a file."""
    command = words[0] if words else ""
    if program == "trl" and command != "sft":
        if command in ("env", "vllm-serve", "skills", "chat", ""):
            return None
        if command not in _OF_TRL:
            refuse_objective(place(command), f"trl {described(command)}")
    if program not in ("trl", "ms-swift") and command != "train":
        return None
    if program == "ms-swift":
        check_processes(variables, place)
    dialect = "arguments" if program == "trl" else program
    found = [Setting(place(program), "launcher", "program", program)]
    found += [hint(place(f"trl {command}"), command)] if program == "trl" and command in _OF_TRL else []
    rest = list(words[1:])
    if program != "trl":
        found += _config(rest, dialect, place)
    return Launch(program, [*found, *option_settings(options_of(rest), dialect, place, program == "trl")])


def _config(words: Sequence[str], dialect: str, place: PlaceOf) -> list[Setting]:
    """The config that is named before any option."""
    if not words or is_option(words[0]) or ASSIGNMENT_OF_KEY.match(words[0]):
        return []
    return [Setting(place(words[0]), dialect, "config", words[0])]


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


def _script_launch(launcher: str, rest: Sequence[str], place: PlaceOf) -> Launch | None:
    options, script, words = _launcher(rest)
    if not script.endswith(".py") and not any(key_of(name) in ("m", "module") for name, _ in options):
        if launcher == "python":
            return None
        unknown = next((f": {described(word)} is not certain" for word in rest if is_unknown(word)), "")
        raise BadInput(f"{place(launcher)}: the launched script is not certain{unknown}; {NO_FILE}")
    if is_unknown(script) and not script.endswith(".py"):
        raise BadInput(f"{place(launcher)}: the launched script is not certain: {described(script)}; {NO_FILE}")
    name = script.removesuffix(".py").replace(".", "/")
    known = job_keys().frameworks.items()
    framework = next((f for f, trainer in known if any(_same_script(script, own) for own in trainer.scripts)), None)
    if name.endswith("scripts/finetune") and words[:1] and words[0].endswith((".yaml", ".yml")):
        framework = "axolotl"  # its command before 0.6
    if framework == "llama-factory" and words[:1] == ["train"]:
        words = words[1:]
    arguments = list(options_of(words))
    names = [key_of(option) for option, _ in arguments]
    is_other = framework is None and is_other_step(script) and "per_device_train_batch_size" not in names
    is_telling = framework is not None or any(key in names for key in _TELLING)
    trains = re.search(
        r"(^|[/_-])(train|training|finetune|fine_tune|finetuning|sft|dpo|grpo|ppo|kto|orpo|mlx_lm/lora)", name
    )
    if is_other or (launcher == "python" and not is_telling and not (trains and words)):
        return None
    hints = [hint(place(script), script)] if objective_in(script) else []
    if framework is None and any(option == "--config-name" for option, _ in arguments):
        raise BadInput(f"{place('--config-name')}: names a config of Hydra, which is not read; {NO_FILE}")
    for part, tool in OTHER_MODULES:
        if framework is None and part in name.split("/"):
            if hints:
                refuse_objective(place(script), f"{objective_in(script)} of {tool} ({described(script)})")
            _refuse_tool(place(script), tool)
    found = [Setting(place(launcher), "launcher", "program", launcher)]
    found += hints
    if launcher != "python":
        found += option_settings(options, "accelerate", place)
    dialect = framework if framework in job_keys().dialects and framework is not None else "arguments"
    if dialect == "arguments" and "finetuning_type" in names:
        dialect = "llama-factory"
    if framework is None and set(names) >= _OF_PEFT:
        framework = dialect = "peft-sft"
    config = _config(words, dialect, place)
    if dialect != "arguments" or (config and config[0].value.endswith(CONFIG_SUFFIXES)):
        found += config
    return Launch(framework, [*found, *option_settings(arguments, dialect, place, framework == "trl")], script)


def _same_script(script: str, known: str) -> bool:
    return script == known or script.endswith(f"/{known}")
