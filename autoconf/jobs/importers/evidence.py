"""Find the trainer that a file or a command belongs to, only on positive evidence, and record the evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Dialect, Setting, job_keys, known_key
from autoconf.jobs.importers.other_files import nearest, tool_of

_ENOUGH = 2  # one key is not enough
# Signs that scripts of other projects also have: enough to read a file, but not to assume the trainer's defaults.
_COMMON = (
    "dataset_name", "dataset_num_proc", "max_seq_length", "lora_r", "lora_target_modules", "load_in_4bit",
    "load_in_8bit", "use_flash_attn", "target_modules", "r",
)  # fmt: skip
_OF_THE_TRAINER = 3  # keys of TrainingArguments that show transformers' Trainer
_SEVERAL = 3  # signs of a trainer whose keys other trainers also have
_FOREIGN = 1  # unknown keys allowed in a file that provably belongs to a trainer, whose own parser refuses unknown keys
# Dialects by their signs: how many of them a file must have, and a key that it must have besides.
_BY_SIGNS = (
    ("deepspeed", 1, ""),
    ("torchtune", 1, ""),
    ("verl", 1, ""),
    ("axolotl", _ENOUGH, "base_model"),
    ("accelerate", 1, ""),
    ("open-instruct", _ENOUGH, "model_name_or_path"),
    ("ms-swift", _SEVERAL, "model"),
    ("peft-sft", 2, ""),
    ("llama-factory", 2, ""),
)
_DIALECTS = ("arguments", "llama-factory", "ms-swift")


class Evidence(NamedTuple):
    """The trainer of some files.

    Attributes:
        framework: Its name in ``job_keys.yaml``, ``None`` if no file has settings of a trainer.
        proven: Whether the trainer's own defaults hold for the method, the length, the batch and the adapters.
        because: The evidence.
    """

    framework: str | None
    proven: bool
    because: tuple[str, ...]


class Command(NamedTuple):
    """The evidence of a command for a trainer.

    Attributes:
        framework: The trainer that the command itself names, such as ``trl sft``; ``None`` if it names a script.
        script: The script or module.
    """

    framework: str | None
    script: str


def dialect_of(document: Mapping[str, Any], file: str) -> str:
    """The dialect of a mapping's keys.

    Raises:
        BadInput: It belongs to another tool, has sections, or most of its keys are unknown; the message says which.
    """
    dialects = job_keys().dialects
    nested = {f"{key}.{inner}" for key, value in document.items() if isinstance(value, dict) for inner in value}
    if not nested & {*dialects["verl"].signs} and (tool := tool_of(document)):
        raise BadInput(f"{file}: looks like {tool}, which is not read; {nearest(tool)}")
    for name, required, model in _BY_SIGNS:
        found = [sign for sign in dialects[name].signs if sign in document or sign in nested]
        if len(found) >= required and (not model or model in document):
            _check_known(document, dialects[name], file, name)
            return name
    _check_known(document, dialects["arguments"], file, "arguments")
    return "arguments"


def _check_known(document: Mapping[str, Any], dialect: Dialect, file: str, name: str) -> None:
    keys = [key for key in document if not key.startswith("_")]
    if not keys:
        raise BadInput(f"{file}: has no settings; give the job by options instead of --job")
    known = [key for key in keys if known_key(dialect, key, document[key])]
    unknown = [key for key in keys if key not in known]
    sections = [key for key in unknown if isinstance(document[key], dict) and document[key]]
    if len(sections) >= _ENOUGH or len(sections) > len(known):
        inside = [
            f"{section}.{key}: {shortened(value, 30)}"
            for section in sections
            for key, value in document[section].items()
            if dialect.find(key) and not isinstance(value, dict | list)
        ]
        hint = f" (known keys in them: {shortened(', '.join(inside), 200)})" if inside else ""
        raise BadInput(
            f"{file}: has the sections {shortened(', '.join(sections))}, which no trainer read here has{hint}; "
            "give the job by options instead of --job"
        )
    if len(unknown) > len(known) or not known:
        raise BadInput(
            f"{file}: {len(unknown)} of its {len(keys)} keys are not those of a trainer read here "
            f"({shortened(', '.join(unknown), 200)}); give the job by options instead of --job"
        )


def evidence_of(settings: Sequence[Setting], commands: Iterable[Command], installed: Sequence[str] = ()) -> Evidence:
    """The trainer of all files of a job together, before a release that refuses one of their keys.

    Args:
        settings: The settings of the files.
        commands: What they run.
        installed: The names of frameworks of older releases that they install.

    Raises:
        BadInput: The files belong to several trainers.
    """
    evidence = _of_any_release(settings, commands)
    older = next((name for name in job_keys().frameworks if name.startswith(f"{evidence.framework} before ")), None)
    keys = [key for key in job_keys().frameworks[older].older if _has(settings, key)] if older else []
    keys += [f"{older} is installed"] if older in installed else []
    return evidence._replace(framework=older, because=(*evidence.because, *keys)) if keys else evidence


def _has(settings: Sequence[Setting], key: str) -> bool:
    names = {key, key.removeprefix("fsdp_")} if key.startswith("fsdp_") else {key}
    return any(
        setting.dialect in ("arguments", "fsdp", "peft-sft")
        and setting.key in names
        and re.search(rf"(^|[\s-]){re.escape(key)}$", setting.place.key)
        and not setting.place.key.startswith("from_pretrained: ")  # which takes torch_dtype in every release
        for setting in settings
    )


def _of_any_release(settings: Sequence[Setting], commands: Iterable[Command]) -> Evidence:
    commands = list(commands)
    named = {command.framework for command in commands if command.framework}
    if len(named) > 1:
        raise BadInput(f"these files belong to {' and '.join(sorted(named))}; one job has one trainer")
    if named:
        (framework,) = named
        proven = not framework.startswith("transformers")  # users write their own scripts for it
        return Evidence(framework, proven, (f"the command or the kind of file of {framework}",))
    of_peft = {setting.key for setting in settings if setting.dialect == "peft-sft"}
    if signs := [sign for sign in job_keys().dialects["peft-sft"].signs if sign in of_peft]:
        return Evidence("peft-sft", True, tuple(signs))
    of_factory = {setting.key for setting in settings if setting.dialect == "llama-factory"}
    if signs := [sign for sign in job_keys().frameworks["llama-factory"].signs if sign in of_factory]:
        return Evidence("llama-factory", len(signs) >= _SEVERAL and _mostly_known(settings), tuple(signs))
    keys = {setting.key for setting in settings if setting.dialect == "arguments"}
    if not keys:
        return Evidence(None, False, ())
    keys |= {key.partition(".")[0] for key in keys}
    scripts = {command.script for command in commands}
    for name in ("fms-hf-tuning", "trl"):
        known = job_keys().frameworks[name]
        signs = [sign for sign in known.signs if sign in keys]
        own = [s for s in scripts if any(s == hint or s.endswith(f"/{hint}") for hint in known.script_hints)]
        other = job_keys().frameworks["trl" if name == "fms-hf-tuning" else "fms-hf-tuning"]
        exclusive = [sign for sign in signs if sign not in other.signs]
        is_sure = any(sign not in _COMMON for sign in signs)
        if len(signs) + len(own) >= _ENOUGH and exclusive and (is_sure or (name == "trl" and own)):
            proven = is_sure and (bool(own) or not scripts) and _mostly_known(settings)
            return Evidence(name, proven, (*own, *signs))
    dialect = job_keys().dialects["arguments"]
    # Patterns of keys that change no memory, such as save_*, are those of other programs as well.
    known_keys = sorted(key for key in keys if dialect.find(key) or key in dialect.ignored)
    if len(known_keys) < _OF_THE_TRAINER:
        return Evidence(None, False, ())
    return Evidence("transformers", False, tuple(known_keys[:5]))


def _mostly_known(settings: Sequence[Setting]) -> bool:
    dialects = {name: job_keys().dialects[name] for name in _DIALECTS}
    keys = {(setting.dialect, setting.key) for setting in settings if setting.dialect in dialects}
    unknown = [key for name, key in keys if not dialects[name].knows(key)]
    return len(unknown) <= _FOREIGN
