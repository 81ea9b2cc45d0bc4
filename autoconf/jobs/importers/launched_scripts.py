"""Read the Python script that a command starts: what it makes of its options, and their defaults."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from autoconf.errors import BadInput
from autoconf.files import is_file
from autoconf.jobs.importers.documents import read_text
from autoconf.jobs.importers.key_table import Place, Setting, job_keys
from autoconf.jobs.importers.launch_options import key_of
from autoconf.jobs.importers.launchers import NO_FILE, Launch
from autoconf.jobs.importers.objectives import hint, objective_in
from autoconf.jobs.importers.python_checks import WITH_ENCODER, is_other_model
from autoconf.jobs.importers.python_code import read_launched
from autoconf.jobs.importers.python_literals import name_of, parsed_code
from autoconf.jobs.importers.python_options import Options, options_in
from autoconf.jobs.importers.python_statements import CONFIGS
from autoconf.jobs.importers.words import is_unknown, unknown

_ENTRIES = ("train", "main")
_LOOPS = ("backward", "train_one_epoch", "train_epoch", "train_loop", "training_loop", "train_step", "training_step")
_TRAINS = re.compile(r"(?i)(?<!pre)(train|tun(e|ing)|fit|learn)")
_ANCESTORS = 3  # folders above the file of the command in which the script's path may start
_OF_LENGTH = {"tokens_per_sample", "packed"}
_PATCHES = re.compile(r"replace_\w+_attn_with_flash_attn")  # FastChat 0.2.36, llama2_flash_attn_monkey_patch.py


def with_script(launch: Launch, file: str, follows: bool = True) -> Launch:
    """A launch with what its script says, if that is a file here that is read completely.

    Args:
        launch: A command that starts a training.
        file: The file that has the command.
        follows: Whether to follow a script that only calls the function of another.
    """
    launch = _with_precision(launch)
    path = None if launch.framework else _found(launch.script, file)
    if path is None:
        is_named = not (launch.framework or is_unknown(launch.script)) and launch.script
        return _unread(launch, f"{launch.script}, which is not here,") if is_named else launch
    of_script = [setting for setting in launch.settings if _is_of_script(setting)]
    given = {key: setting.value for setting in of_script for key in (setting.key, _written(setting))}
    try:
        text = read_text(path)
        tree = parsed_code(text, path)
    except BadInput as error:
        return _unread(launch, path, error)
    if _is_loop(tree):
        raise BadInput(f"{path}: trains in a loop of its own, whose memory is not known; {NO_FILE}")
    if "from_pretrained" in _calls(tree) and not any(map(_TRAINS.search, _names(tree))):
        raise BadInput(f"{path}: loads a model, and nothing in it trains one; {NO_FILE}")
    _check_model(tree, path)
    options = options_in([*ast.walk(tree)], given)
    if not (options.owners or options.of_fire or _calls(tree) & {*CONFIGS}):
        module = _called_module(tree) if follows else ""
        if module:
            followed = with_script(launch._replace(script=module), file, follows=False)
            return followed._replace(settings=[*followed.settings, *_patched(tree, path)])
        return _unread(launch, path, "no parser of it is known here")
    try:
        code = read_launched(text, path, given)
    except BadInput as error:
        hints = [hint(Place(path), name) for name in _own_trainers(tree) if objective_in(name)]
        return _unread(launch._replace(settings=[*launch.settings, *hints]), path, error)
    settings = [*_left(launch.settings, options), *_defaults(options, path), *code.settings, *_patched(tree, path)]
    return launch._replace(framework=code.framework, settings=settings, assumed=(*launch.assumed, *code.assumed))


def _unread(launch: Launch, script: str, why: object = "") -> Launch:
    """The launch with a sentence on a script that is not read."""
    said = f"what {script} does is not read{why and f': {why}'}"
    return launch._replace(assumed=(*launch.assumed, said))


def _written(setting: Setting) -> str:
    """The key as the command has it, which may be shorter than that of the Trainer."""
    return key_of(setting.place.key) if setting.place.key.startswith("--") else setting.key


def _is_of_script(setting: Setting) -> bool:
    """Whether an option is one of the script, or may be: one that is without effect if it is the launcher's."""
    launcher = job_keys().dialects["accelerate"]
    return setting.dialect == "arguments" or (setting.dialect == "accelerate" and launcher.find(setting.key) is None)


def _with_precision(launch: Launch) -> Launch:
    """Ask for the precision of DeepSpeed-Chat, whose many copies set float16 in code (v0.15, utils/ds_utils.py)."""
    stage = next((s for s in launch.settings if s.key == "zero_stage" and s.place.key.endswith("--zero_stage")), None)
    keys = {setting.key for setting in launch.settings}
    is_flag = any(setting.key == "deepspeed" and setting.value is True for setting in launch.settings)
    if stage is None or not is_flag or keys & {"bf16", "fp16"}:
        return launch
    of_code = Setting(stage.place, "arguments", "bf16", unknown("the precision", "set in the code of the script"))
    return launch._replace(settings=[*launch.settings, of_code])


def _called_module(tree: ast.Module) -> str:
    """The module whose function a script calls to train, as FastChat's ``train_mem.py`` does; empty if none."""
    called = _calls(tree)
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return next((str(n.module) for n in imports if any(a.name in called & {*_ENTRIES} for a in n.names)), "")


def _patched(tree: ast.Module, path: str) -> Iterator[Setting]:
    """The attention that a script puts into the models' classes before anything else."""
    for node in tree.body:
        match node:
            case ast.Expr(value=ast.Call(func=function, args=[], keywords=[])) if _PATCHES.fullmatch(name_of(function)):
                place = Place(path, node.lineno, name_of(function))
                yield Setting(place, "arguments", "attn_implementation", "flash_attention_2")


def _calls(tree: ast.Module) -> set[str]:
    """The names of what a script calls."""
    return {name_of(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def _names(tree: ast.Module) -> Iterator[str]:
    """The names that a script has and uses."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.ImportFrom(module=str() as name):
                yield name


def _check_model(tree: ast.Module, path: str) -> None:
    """Refuse a script that loads only models with an encoder, whatever else of it is read."""
    names = {*_names(tree)}
    other = min(filter(is_other_model, names), default="")
    if other and not any(name.endswith("ForCausalLM") for name in names):
        raise BadInput(f"{path}: {other}: {WITH_ENCODER}; {NO_FILE}")


def _own_trainers(tree: ast.Module) -> list[str]:
    """The names of trainers that a script calls, without that word."""
    return sorted(name.removesuffix("Trainer") for name in _calls(tree) if name.endswith("Trainer"))


def _is_loop(tree: ast.Module) -> bool:
    """Whether a script computes gradients itself, without a trainer."""
    names = _calls(tree)
    return bool(names & {*_LOOPS}) and not any(name.endswith("Trainer") for name in names)


def _found(script: str, file: str) -> str | None:
    """The path of a script; a relative one may start in the folder of the file, or above it.

    One whose folder is elsewhere or not certain is that of its name next to the file.
    """
    if script.endswith(".py") and (is_unknown(script) or Path(script).is_absolute()):
        script = script.rpartition("/")[2]
    if is_unknown(script) or not script:
        return None
    name = script if script.endswith(".py") else f"{script.replace('.', '/')}.py"
    folder = Path(file).parent
    for start in (folder, *list(folder.absolute().parents)[:_ANCESTORS]):
        try:
            if not Path(name).is_absolute() and is_file(start / name):
                return str(start / name)
        except (OSError, ValueError):  # a name that is too long for a file
            return None
    return None


def _left(settings: list[Setting], options: Options) -> list[Setting]:
    """The settings of a command without those whose effect is what its script does with them."""
    table = job_keys().dialects["arguments"]
    own = {name for name in options.values if not options.config or not table.knows(name)} | {
        *options.of_fire,
        *options.written,
    }
    return [s for s in settings if s.dialect != "arguments" or not (s.key in own or _is_declared(s, options))]


def _is_declared(setting: Setting, options: Options) -> bool:
    """Whether the script has an option with the name in the command, which otherwise abbreviates the Trainer's."""
    return _written(setting) != setting.key and _written(setting) in options.declared


def _defaults(options: Options, path: str) -> Iterator[Setting]:
    """The defaults of options that a command does not give: of the Trainer's own, and of the length of samples."""
    table = job_keys().dialects["arguments"]
    for name, default in options.defaults.items() if options.config else ():
        known = table.find(name)
        if known is None or is_unknown(default.value) or default.value is None:
            continue
        if default.of_trainer or known.facts() <= _OF_LENGTH:
            yield Setting(Place(path, default.line, f"{name} (default)"), "arguments", name, default.value)
