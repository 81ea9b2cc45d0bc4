"""The table ``job_keys.yaml`` with the meaning of other projects' keys, and settings read from files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import translate
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autoconf.jobs.importers.documents import printable

_LAUNCHERS = "accelerate_launch_args."  # fms-hf-tuning's image: v3.1.0, build/accelerate_launch.py
_NAMING_DEEPSPEED = ("arguments", "llama-factory", "axolotl", "ms-swift")
_OF_DEEPSPEED = ("deepspeed", "deepspeed_config")  # keys whose value may be DeepSpeed's config itself
JOB_KEYS = Path(__file__).with_name("job_keys.yaml")


class Place(NamedTuple):
    """The place of a key in a file.

    >>> str(Place("job.yaml", 7, "spec.trainer.args: --optim")), str(Place("job.yaml", None, "optim"))
    ('job.yaml:7 spec.trainer.args: --optim', 'job.yaml optim')
    """

    file: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        return f"{self.file}{line}{' ' if self.key else ''}{printable(self.key)}"


class Setting(NamedTuple):
    """One key and value read from a file."""

    place: Place
    dialect: str  # a dialect of ``job_keys.yaml``
    key: str
    value: Any


class _Typed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(_Typed):
    """The meaning of one key: a field of a job, or facts for each of its values, or both; ``values`` are first."""

    field: str | None = None
    also: Mapping[str, Any] = {}  # facts that a value of the field states besides
    values: Mapping[str, dict[str, Any]] = Field(default_factory=dict)
    because: str = "its effect is not known"
    empty: str = ""
    assume: str = ""
    number: str = ""
    never: tuple[str, ...] = ()  # values that no option replaces
    instead: tuple[str, ...] = ()  # fields that options give instead of a key that states none

    @field_validator("values", mode="before")
    @classmethod
    def _texts(cls, values: dict[Any, Any]) -> dict[str, Any]:
        return {text(value): facts for value, facts in values.items()}

    def facts(self) -> set[str]:
        """The facts that the key can state."""
        of_values = {fact for facts in (*self.values.values(), self.also) for fact in facts}
        return of_values | {*self.instead} | ({self.field} if self.field else set())


class Dialect(_Typed):
    """The keys of one kind of file; with ``like``, the keys of another kind follow its own keys."""

    source: str
    like: str = ""
    keys: dict[str, Key]
    signs: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def find(self, key: str) -> Key | None:
        """The meaning of a key, by exact name first, then by pattern; ``None`` if the table does not have it."""
        if key in self.keys:
            return self.keys[key]
        return next((self.keys[name] for name, pattern in self._patterns if pattern.match(key)), None)

    def knows(self, key: str) -> bool:
        """Whether the table has a key, including keys that change no memory."""
        return self.find(key) is not None or self.ignores(key)

    def ignores(self, key: str) -> bool:
        """Whether a key changes no memory."""
        return key in self.ignored or self._ignored_pattern.match(key) is not None

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(name, re.compile(translate(name))) for name in self.keys if "*" in name]

    @cached_property
    def _ignored_pattern(self) -> re.Pattern[str]:
        return any_of(tuple(name for name in self.ignored if "*" in name))


class Default(_Typed):
    value: Any
    source: str


class Framework(_Typed):
    """A trainer: its preset, the evidence for it, and its defaults."""

    preset: str
    scripts: tuple[str, ...]  # scripts that prove the framework
    script_hints: tuple[str, ...] = ()  # names that other projects have as well: evidence only together with a sign
    signs: tuple[str, ...]
    older: tuple[str, ...] = ()  # keys that later releases refuse, of a framework before them
    defaults: dict[str, Default]
    needs: dict[str, str] = {}  # facts that files must state, with the error message if they do not
    needs_of_full: dict[
        str, str
    ] = {}  # the same, of jobs that train all parameters and whose model FSDP does not shard
    note: str = ""
    without_preset: str = ""  # the error message if no stack is given, for a trainer that none is near enough to


class JobKeys(_Typed):
    dialects: dict[str, Dialect]
    frameworks: dict[str, Framework]

    @field_validator("dialects", mode="before")
    @classmethod
    def _with_others(cls, dialects: dict[str, Any]) -> dict[str, Any]:
        complete = {}
        for name, own in dialects.items():
            other = dialects.get(own.get("like"), {})
            keys = {**other.get("keys", {}), **own["keys"]}
            complete[name] = {**own, "keys": keys, "ignored": [*own.get("ignored", ()), *other.get("ignored", ())]}
        return complete


@cache
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One regular expression that matches what any of the patterns of names matches.

    >>> bool(any_of(("dpo_*", "beta")).match("dpo_loss")), any_of(("beta",)).match("beta2"), any_of(()).match("")
    (True, None, None)
    """
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")


@cache
def job_keys() -> JobKeys:
    """Load the table.

    >>> job_keys().dialects["arguments"].find("optim").values["adamw_8bit"]
    {'optim': 'adamw_bnb_8bit'}
    >>> job_keys().dialects["arguments"].ignores("learning_rate")
    True
    """
    import yaml

    return JobKeys.model_validate(yaml.safe_load(JOB_KEYS.read_text(encoding="utf-8")))


def known_key(dialect: Dialect, key: str, value: Any) -> bool:
    """Whether the table has a key, or for a section any key in it."""
    if dialect.knows(key) or key in ("fsdp_config", "accelerate_launch_args", "deepspeed_config"):
        return True
    if key.startswith("fsdp_") and job_keys().dialects["fsdp"].find(key.removeprefix("fsdp_")):
        return True
    if isinstance(value, list):
        return f"{key}[]" in dialect.keys
    inside = _flat(value, f"{key}.") if isinstance(value, Mapping) else ()
    return any(dialect.knows(inner) for inner, _ in inside)


def text(value: Any) -> str:
    """A value as the table writes it: in lower case, several words or the items of a list in order of the alphabet.

    >>> text(True), text(["v_proj", "q_proj"]), text("FULL_SHARD"), text("full_shard, auto_wrap")
    ('true', 'q_proj v_proj', 'full_shard', 'auto_wrap full_shard')
    """
    if isinstance(value, list | tuple):
        return " ".join(sorted(text(item) for item in value))
    return " ".join(sorted(str(value).casefold().replace(",", " ").split()))


def settings(dialect: str, mapping: Mapping[str, Any], place: Callable[[str], Place]) -> Iterator[Setting]:
    """The settings of a mapping, nested ones by their dotted keys.

    Args:
        dialect: The dialect of its keys.
        mapping: Keys and values.
        place: The place of a dotted key.

    >>> fsdp = {"fsdp_config": {"fsdp_version": 2}}
    >>> found = settings("accelerate", fsdp, lambda key: Place("a.yaml", 3, key))
    >>> [(str(s.place), s.dialect, s.key) for s in found]
    [('a.yaml:3 fsdp_config.fsdp_version', 'fsdp', 'version')]
    """
    table, launchers = job_keys().dialects[dialect], job_keys().dialects["accelerate"]
    if dialect == "deepspeed":
        mapping = _with_defaults(mapping)
    for section in _OF_DEEPSPEED if dialect in _NAMING_DEEPSPEED else ():
        if isinstance(mapping.get(section), Mapping):
            yield from _section(mapping[section], section, place)
            mapping = {key: value for key, value in mapping.items() if key != section}
    for key, value in _flat(mapping):
        if dialect == "arguments" and key.startswith(_LAUNCHERS):
            launcher = {key.removeprefix(_LAUNCHERS): value}
            yield from settings("accelerate", launcher, lambda key: place(f"{_LAUNCHERS}{key}"))
        elif f"{key}[]" in table.keys and isinstance(value, list):
            yield from (Setting(place(f"{key}[{i}]"), dialect, f"{key}[]", item) for i, item in enumerate(value))
        elif dialect == "accelerate" and table.find(key.removeprefix("deepspeed_config.")):
            yield Setting(place(key), dialect, key.removeprefix("deepspeed_config."), value)
        elif key.startswith("fsdp_config."):
            yield Setting(place(key), "fsdp", key.removeprefix("fsdp_config.").removeprefix("fsdp_"), value)
        elif key.startswith("fsdp_") and key not in table.keys:
            yield Setting(place(key), "fsdp", key.removeprefix("fsdp_"), value)
        elif dialect == "arguments" and not table.knows(key) and launchers.knows(key):  # TRL takes them in one file
            yield Setting(place(key), "accelerate", key, value)
        else:
            yield Setting(place(key), dialect, key, value)


def _section(mapping: Mapping[str, Any], name: str, place: Callable[[str], Place]) -> Iterator[Setting]:
    """The settings of DeepSpeed's config as a section of other settings."""
    return settings("deepspeed", mapping, lambda key: place(f"{name}.{key}"))


def _with_defaults(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config of DeepSpeed with the defaults of ZeRO that change memory (deepspeed 0.19.8, runtime/zero/config.py)."""
    zero = mapping.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        return mapping
    stage = zero.get("stage", 0)
    defaults = {"reduce_bucket_size": 500_000_000} if stage in (1, 2, 3) else {}
    return {**mapping, "zero_optimization": {"stage": stage, **defaults, **zero}}


def _flat(mapping: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
