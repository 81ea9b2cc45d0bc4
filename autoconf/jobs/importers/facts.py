"""Convert settings to the facts that they state, by the table of keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.importers.key_table import Dialect, Key, Setting, job_keys, text
from autoconf.jobs.importers.other_files import is_off
from autoconf.jobs.importers.unknown_keys import concern, names_sharding
from autoconf.jobs.importers.words import described, is_unknown
from autoconf.jobs.job import BATCHES, Workload, read

_OF_ADAPTERS = {"lora_r", "lora_targets", "dropout", "lora_layers", "trained_modules"}
# The facts that determine a field, in addition to the fact with its name.
FACTS_OF = {
    "method": ("adapters", "quantized"),
    "quantization": ("nested",),
    "gradient_checkpointing": ("checkpointing", "reentrant", "fsdp_checkpointing", "inputs_on_host"),
    "sharding": (
        "sharded",
        "fsdp_version",
        "fsdp_strategy",
        "trainer_strategy",
        "reshards",
        "trainer_fsdp",
        "trainer_fsdp_version",
        "launched",
        "zero_stage",
        "launched_stage",
        "deepspeed",
    ),
    "offload": ("offload_optimizer", "offload_parameters", "fsdp_offload"),
    "optim": ("deepspeed_optim", "torch_adam"),
    "mixed_precision": ("launch_precision", "fp16", "pure"),
    "objective": ("preference", "without_reference", "precomputed"),
    "loss": ("liger",),
    "torch_dtype": ("cast_back",),
    "lora_dropout": ("dropout",),
    "adapter_dtype": ("casts_adapters",),
    "tokens_per_sample": ("packed",),
    **{batch: BATCHES for batch in BATCHES},
}


_QUANTIZED = re.compile(
    r"(?i)(?<![a-z])(gptq|awq|aqlm|hqq|bnb|gguf|int[48]|fp8|nvfp4|mxfp4|[48]-?bit|w[48]a\d+)(?![a-z])"
)


_NOT_QUANTIZED = "is counted as not quantized, which holds more"
_ADAPTER_FACTS = {"lora_r", "lora_targets", "dropout"}
_NUMBER = re.compile(r"\d+(\.\d*)?(e\+?\d+)?")


class Source(NamedTuple):
    """A setting that decides facts, with its place."""

    setting: Setting
    facts: dict[str, Any]
    rule: str

    def __str__(self) -> str:
        follows = ", ".join(f"{named(fact)} = {value}" for fact, value in self.facts.items())
        return f"{self.setting.place}: {_quoted(self.setting.value)} -> {follows}"

    def record(self) -> dict[str, Any]:
        """The source as columns: value, file, line, key and rule."""
        file, line, key = self.setting.place
        value = self.setting.value
        shown = value if isinstance(value, str | int | float | bool | None) else str(value)
        return {"value": shown, "file": file, "line": line, "key": key, "rule": self.rule}


class Reading:
    """Collects the facts that files state."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._said_otherwise = {fact for field in options for fact in (field, *FACTS_OF.get(field, ()))}
        self.facts: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._options = options
        self.notes: list[str] = []
        self.sources: list[Source] = []
        self.ignored: list[str] = []
        self.unknown: list[str] = []
        self.assumed: list[str] = []
        self.problems: list[str] = []
        self._alike: dict[tuple[str, str], int] = {}
        self._shares: list[str] = []  # unknown keys whose values name how GPUs share the model

    def take(self, thing: Setting) -> None:
        where, value = str(thing.place), thing.value
        dialect = job_keys().dialects[thing.dialect]
        meaning = dialect.find(thing.key)
        if meaning is None:
            self._take_unknown(thing, dialect)
            return
        stated = meaning.facts()
        if text(value) in meaning.never:
            self.problems.append(f"{where}: {_quoted(value)}: is not answered, and no option replaces it")
            return
        if why := self._without_effect(stated):
            self._ignore(thing, stated, why)
            return
        if self._options.get("method") == "full" and stated <= _ADAPTER_FACTS and stated and is_unknown(value):
            self.ignored.append(f"{where}: no adapters are trained")
            return
        if value is None or value == {}:
            if meaning.empty:
                self.problems.append(f"{where}: {meaning.empty}")
            return
        if unknown_parts := [part for part in (value if isinstance(value, list) else [value]) if is_unknown(part)]:
            covers = meaning.values or meaning.field or meaning.number
            why = " is not certain" if covers else f": {meaning.because}"
            self.problems.append(f"{where}: {described(unknown_parts[0])}{why}{_way_out(meaning)}")
            return
        if isinstance(value, str) and "$" in value:
            self.problems.append(f"{where}: {_quoted(value)}: the variable is not set in the file{_way_out(meaning)}")
            return
        try:
            facts = _facts(meaning, value)
        except ValueError as error:
            self._refuse(thing, f"{error}{_way_out(meaning)}")
            return
        if meaning.assume and text(value) != "false":
            self.assumed.append(f"{where}: {meaning.assume}")
        if meaning.number and text(value) not in meaning.values:
            self._assume(thing, f"{where}: {float(value):,.0f}", meaning.number)
        new = {fact: v for fact, v in facts.items() if fact not in self._said_otherwise}
        for fact, v in new.items():
            self._state(fact, v, where)
        if new and thing.dialect != "launcher":
            self.sources.append(Source(thing, new, dialect.source))
        elif not new:
            self.ignored.append(f"{where}: {_quoted(value)}")

    def assumptions(self) -> list[str]:
        """What is assumed, without that a base is not quantized where another setting says that it is."""
        is_quantized = self.facts.get("quantized") == "yes"
        return [line for line in self.assumed if not (is_quantized and line.endswith(_NOT_QUANTIZED))]

    def _ignore(self, thing: Setting, stated: set[str], why: str) -> None:
        self.ignored.append(f"{thing.place}: {why}")
        if "model_name" in stated and _QUANTIZED.search(str(thing.value)) and "quantization" not in self._options:
            said = f"{thing.place}: {_quoted(thing.value)}"
            self.assumed.append(f"{said} {_NOT_QUANTIZED}")

    def _without_effect(self, stated: set[str]) -> str:
        """Why options leave nothing to a key that states some facts; empty if they do not."""
        method = self._options.get("method")
        if stated and stated <= self._said_otherwise:
            return "set by an option"
        if stated and stated <= _OF_ADAPTERS and method == "full":
            return "no adapters are trained"
        return "no base is quantized" if stated == {"upcast_unquantized"} and method in ("full", "lora") else ""

    def check_sharding(self) -> None:
        """Refuse values that name how GPUs share the model, where no key that is known here says it."""
        if {*FACTS_OF["sharding"], "sharding"} & {*self.facts} - {"launched"} or "sharding" in self._options:
            return
        self.problems += [f"{said}: may set how GPUs share the model; give --sharding" for said in self._shares]

    def _assume(self, setting: Setting, said: str, assumption: str) -> None:
        """Add an assumption about a number; those of one file that are the same are one sentence."""
        same = next((i for i, a in enumerate(self.assumed) if a.endswith(f" {assumption}")), None)
        if same is None or not self.assumed[same].startswith(f"{setting.place.file}:"):
            self.assumed.append(f"{said} {assumption}")
        else:
            places = self.assumed[same].removesuffix(f" {assumption}").removesuffix(": each")
            self.assumed[same] = f"{places}, {said}: each {assumption}"

    def _refuse(self, setting: Setting, problem: str) -> None:
        """Add a problem; those of one file with the same reason are one sentence."""
        said = f"{setting.place}: {_quoted(setting.value)}"
        same = (setting.place.file, problem)
        if same in self._alike:
            self.problems[self._alike[same]] = self.problems[self._alike[same]].replace(
                f": {problem}", f", {said}: {problem}"
            )
        else:
            self._alike[same] = len(self.problems)
            self.problems.append(f"{said}: {problem}")

    def _take_unknown(self, setting: Setting, dialect: Dialect) -> None:
        """Refuse an unknown key whose name suggests an effect on memory, unless an option sets the fields concerned."""
        where = str(setting.place)
        if dialect.ignores(setting.key):
            self.ignored.append(where)
            return
        if is_unknown(setting.key):
            self.problems.append(f"{setting.place.file}: {described(setting.key)} may be any option; write it out")
            return
        about = concern(setting.key)
        if about is None and names_sharding(setting.value):
            self._shares.append(f"{where}: {_quoted(setting.value)}")
        if about is None or setting.value is None or (about.options != ("method",) and is_off(setting.value)):
            self.unknown.append(where)
        elif any(option in self._options for option in about.options):
            self.ignored.append(f"{where}: set by an option")
        elif self._options.get("method") == "full" and about.options[0] in ("lora_r", "lora_targets", "lora_dropout"):
            self.ignored.append(f"{where}: no adapters are trained")
        else:
            why = f"this key is not known here, and may set {about.what}; give {options_of(about.options)}"
            self._refuse(setting, why)

    def _state(self, fact: str, value: Any, where: str) -> None:
        if fact in self.facts and str(self.facts[fact]) != str(value):
            other = self._where[fact]
            of = "the launcher's option of that name" if other == where else other
            self.problems.append(f"{where}: {named(fact)} = {value} contradicts {of}, which sets {self.facts[fact]}")
        self.facts.setdefault(fact, value)
        self._where.setdefault(fact, where)


def of_deepspeed(found: Sequence[Setting]) -> Iterator[Setting]:
    """Settings without the launcher's accumulation, unless accelerate starts DeepSpeed.

    Other launches do not pass it on (accelerate v1.14.0, src/accelerate/utils/launch.py, prepare_deepspeed_cmd_env).
    """
    launcher = job_keys().dialects["accelerate"]
    of_launcher = [(s, launcher.find(s.key)) for s in found if s.dialect == "accelerate"]
    starts = any(key and "deepspeed" in key.values.get(text(setting.value), {}) for setting, key in of_launcher)
    for setting in found:
        if starts or (setting.dialect, setting.key) != ("accelerate", "gradient_accumulation_steps"):
            yield setting


def adapters_in_question(reading: Reading, options: Mapping[str, Any]) -> list[str]:
    """Settings of adapters without a key that says whether adapters are trained."""
    of_adapters = [s for s in reading.sources if _ADAPTER_FACTS & set(s.facts)]
    if "method" in options or "adapters" in reading.facts or not of_adapters:
        return []
    places = ", ".join(str(source.setting.place) for source in of_adapters)
    return [f"{places}: no known key enables adapters; give --method"]


def options_of(fields: Sequence[str]) -> str:
    """Fields as options of the command.

    >>> options_of(["torch_dtype", "mixed_precision"])
    '--torch-dtype or --mixed-precision'
    """
    return " or ".join(f"--{field.replace('_', '-')}" for field in fields)


def _way_out(meaning: Key) -> str:
    """The option to give instead of a key, if there is one."""
    facts = meaning.facts()
    possible = [*(field for field in Workload.model_fields if field in facts), *Workload.model_fields]
    fields = [field for field in possible if facts and facts <= {field, *FACTS_OF.get(field, ())}]
    return f"; or give {options_of(fields[:1])}" if fields else ""


def _facts(meaning: Key, value: Any) -> dict[str, Any]:
    """The facts of a key for a value.

    Raises:
        ValueError: the value is unknown.
    """
    if (facts := meaning.values.get(_as_boolean(meaning, text(value)))) is not None:
        return facts
    if meaning.number and _NUMBER.fullmatch(text(value)):
        return {}
    if meaning.field is None:
        values = [value for value in meaning.values if value]
        known = f"; it may be {', '.join(values)}" if values else ""
        raise ValueError(f"{meaning.because}{known}")
    if meaning.field == "model_name" and (found := _QUANTIZED.search(str(value))):
        kind = found[0].casefold()
        adapters = f", and for adapters over it --method qlora and --quantization {kind}" * (kind in ("gptq", "awq"))
        raise ValueError(
            f"{found[0]} in the name means that the checkpoint is already quantized; give --model-name for the one "
            f"that it was made from{adapters}"
        )
    if meaning.field in Workload.model_fields:
        return {meaning.field: read(meaning.field, value), **meaning.also}
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1
    if not 0 <= share < 1:
        raise ValueError(f"{meaning.field}: must be a number >= 0 and < 1")
    return {meaning.field: share}


def _as_boolean(meaning: Key, value: str) -> str:
    """The text of a boolean, which argparse and the parser of transformers accept in several forms."""
    if not set(meaning.values) <= {"true", "false"}:
        return value
    return "true" if value in ("yes", "t", "y", "1") else "false" if value in ("no", "f", "n", "0") else value


def named(fact: str) -> str:
    """The name of a fact in messages, with its field."""
    field = next((field for field, facts in FACTS_OF.items() if fact in facts and field not in BATCHES), fact)
    return fact if fact == field else f"{field} ({fact})"


def _quoted(value: Any) -> str:
    if any(is_unknown(part) for part in (value if isinstance(value, list) else [value])):
        return described(" ".join(map(str, value)) if isinstance(value, list) else value)
    return shortened(repr(value))
