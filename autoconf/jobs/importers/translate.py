"""What files say of a job, as the fields of a job: by the table of keys, and the few facts that only hold together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Framework, Key, Setting, job_keys, text
from autoconf.jobs.job import BATCHES, OPTIONAL, Workload, read
from autoconf.jobs.names import key
from autoconf.jobs.presets import SETTINGS, Preset, presets

# The facts that a field follows from, beside one of its own name.
_FACTS_OF = {
    "method": ("adapters", "quantized", "nested"),
    "gradient_checkpointing": ("checkpointing", "reentrant", "fsdp_checkpointing"),
    "sharding": ("sharded", "fsdp_version", "trainer_fsdp", "trainer_fsdp_version", "launched"),
    "mixed_precision": ("launch_precision",),
    "loss": ("liger",),
    "tokens_per_sample": ("packed",),
    **{batch: BATCHES for batch in BATCHES},
}
# What a framework does by default of what a stack says, which gives way to a stack that an option names.
_OF_STACK = ("checkpointing", "mixed_precision", "torch_dtype", "loss", "optim", "adapter_dtype", "lora_r", "dropout")
_OF_ADAPTERS = ("adapter_dtype", "lora_r", "lora_targets", "dropout")
_NO_ARGUMENTS = f"no file has arguments of a training: what is not given is as the stack {OPTIONAL['stack']} comes"
_AS_SAID = (
    "model_name", "gpu_model", "tokens_per_sample", "gradient_accumulation_steps", "optim", "torch_dtype",
)  # fmt: skip


class JobFile(NamedTuple):
    """What files say of a job."""

    fields: dict[str, Any]  # of a ``Workload``, without those that options give
    read: tuple[str, ...]
    assumed: tuple[str, ...]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]


def job_of(said: Iterable[Setting], framework: str | None, options: Mapping[str, Any]) -> JobFile:
    """The job that files describe.

    Args:
        said: what the files say, in any order.
        framework: what trains, of ``job_keys.yaml``; ``None`` where no file has arguments of training.
        options: fields that are given otherwise, and win; what files say of these is not read.

    Raises:
        BadInput: something that matters cannot be read, or contradicts another; the message has a line for each.

    >>> from autoconf.jobs.importers.key_table import Place
    >>> said = [Setting(Place("job.yaml", 3, "optim"), "arguments", "optim", "sgd")]
    >>> job_of(said, "trl", {}).fields["optim"]
    'sgd'
    """
    reading = _Reading(options)
    for thing in said:
        reading.take(thing)
    if reading.problems:
        raise BadInput("\n".join(reading.problems))
    job = _Job(reading, None if framework is None else job_keys().frameworks[framework], options)
    job.combine()
    return JobFile(
        job.fields, *(tuple(lines) for lines in (reading.read, job.assumed, reading.ignored, reading.unknown))
    )


class _Reading:
    """The facts that files state, one by one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._said_otherwise = {fact for field in options for fact in (field, *_FACTS_OF.get(field, ()))}
        self.facts: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self.read: list[str] = []
        self.ignored: list[str] = []
        self.unknown: list[str] = []
        self.assumed: list[str] = []
        self.problems: list[str] = []

    def take(self, thing: Setting) -> None:
        where, value = str(thing.place), thing.value
        dialect = job_keys().dialects[thing.dialect]
        meaning = dialect.find(thing.key)
        if meaning is None:
            (self.ignored if dialect.ignores(thing.key) else self.unknown).append(where)
            return
        stated = meaning.facts()
        if stated and stated <= self._said_otherwise:
            self.ignored.append(f"{where}: an option says it")
            return
        if value is None or value == {}:
            if meaning.empty:
                self.problems.append(f"{where}: {meaning.empty}")
            return
        if isinstance(value, str) and "$" in value:
            self.problems.append(f"{where}: {value!r}: the variable is not set in the file")
            return
        try:
            facts = _facts(meaning, value)
        except ValueError as error:
            self.problems.append(f"{where}: {_quoted(value)}: {error}")
            return
        if meaning.assume and text(value) != "false":
            self.assumed.append(f"{where}: {meaning.assume}")
        new = {fact: v for fact, v in facts.items() if fact not in self._said_otherwise}
        for fact, v in new.items():
            self._state(fact, v, where)
        if new and thing.dialect != "launcher":
            self.read.append(
                f"{where}: {_quoted(value)} -> {', '.join(f'{_named(fact)} = {v}' for fact, v in new.items())}"
            )
        elif not new:
            self.ignored.append(f"{where}: {_quoted(value)}")

    def _state(self, fact: str, value: Any, where: str) -> None:
        if fact in self.facts and str(self.facts[fact]) != str(value):
            self.problems.append(
                f"{where}: {_named(fact)} = {value} contradicts {self._where[fact]}, which says {self.facts[fact]}"
            )
        self.facts.setdefault(fact, value)
        self._where.setdefault(fact, where)


def _facts(meaning: Key, value: Any) -> dict[str, Any]:
    """What a key states by a value.

    Raises:
        ValueError: it cannot be told.
    """
    if meaning.field is None:
        if (facts := meaning.values.get(text(value))) is None:
            known = f"; it may be {', '.join(meaning.values)}" if meaning.values else ""
            raise ValueError(f"{meaning.because}{known}")
        return facts
    if meaning.field in Workload.model_fields:
        return {meaning.field: read(meaning.field, value)}
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1
    if not 0 <= share < 1:
        raise ValueError(f"{meaning.field}: must be a number >= 0 and < 1")
    return {meaning.field: share}


def _named(fact: str) -> str:
    """A fact with the field that it counts for, as messages have it."""
    field = next((field for field, facts in _FACTS_OF.items() if fact in facts and field not in BATCHES), fact)
    return fact if fact == field else f"{field} ({fact})"


def _quoted(value: Any) -> str:
    quoted = repr(value)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."


class _Job:
    """Facts become fields; what they leave open comes from the framework, and then from its preset."""

    def __init__(self, reading: _Reading, framework: Framework | None, options: Mapping[str, Any]) -> None:
        self._reading = reading
        self.facts = reading.facts
        self.fields: dict[str, Any] = {}
        self.assumed = list(reading.assumed)
        self.options = options
        self.framework = framework
        if self.facts.pop("packed", None):
            reading.read.append("samples are packed: each has as many tokens as the longest may have")

    def _fact(self, fact: str) -> Any:
        """What the files say, or else what the framework does then."""
        if fact in self.facts:
            return self.facts[fact]
        if self.framework is not None and fact in self.framework.needs:
            raise BadInput(self.framework.needs[fact])
        if self.framework is None or fact not in self.framework.defaults:
            return None
        if "stack" in self.options and fact in _OF_STACK:
            return None
        default = self.framework.defaults[fact]
        self.assumed.append(f"{_named(fact)} = {default.value} ({default.source})")
        return default.value

    def combine(self) -> None:
        if "stack" not in self.options:
            self.assumed += [note for note in [self.framework.note if self.framework else _NO_ARGUMENTS] if note]
        method = self._put("method", self._method)
        self._put("gradient_checkpointing", self._checkpointing)
        self._put("sharding", self._sharding)
        self._put("mixed_precision", self._mixed_precision)
        self._put("loss", self._loss)
        self._batch()
        for field in _AS_SAID:
            self._put(field, lambda field=field: self._fact(field))
        trains = "full" if method is None else key(str(method))
        for field in _OF_ADAPTERS if trains == "full" else ():
            if self.facts.pop(field, None) is not None:
                self._reading.ignored.append(f"{field}: no adapters are trained")
        for field in ("adapter_dtype", "lora_r", "lora_targets") if trains != "full" else ():
            self._put(field, lambda field=field: self._fact(field))
        if self.framework is not None and "stack" not in self.options:
            self._choose_preset(trains, presets()[self.framework.preset])

    def _put(self, field: str, value: Any) -> Any:
        """Set a field, unless an option does; which of them it is, is returned."""
        if field in self.options:
            return self.options[field]
        found = value()
        if found is not None:
            self.fields[field] = found
        return found

    def _batch(self) -> None:
        if any(batch in self.options for batch in BATCHES):
            return
        if self._put("per_device_train_batch_size", lambda: self._fact("per_device_train_batch_size")) is not None:
            self.assumed.append("each GPU keeps its batch: on another number of GPUs the global batch is another")

    def _method(self) -> str | None:
        quantized = self.facts.get("quantized") == "yes"
        adapters = self._fact("adapters")
        if quantized and adapters == "no":
            raise BadInput("method: a 4-bit base without adapters cannot be trained")
        if quantized:
            self._fact("nested")
        if adapters is None:
            return "qlora" if quantized else None
        return "full" if adapters == "no" else "qlora" if quantized else "lora"

    def _checkpointing(self) -> str | None:
        if self.facts.get("fsdp_checkpointing") == "yes":
            if self.facts.get("checkpointing") == "yes":
                raise BadInput(
                    "gradient_checkpointing: given both to the Trainer and to FSDP, which the Trainer refuses"
                )
            return "non-reentrant"  # accelerate/utils/fsdp_utils.py: CheckpointImpl.NO_REENTRANT
        checkpointing = self._fact("checkpointing")
        if checkpointing != "yes":
            return None if checkpointing is None else "none"
        reentrant = self._fact("reentrant")
        return "reentrant" if reentrant == "yes" else "non-reentrant"

    def _sharding(self) -> str | None:
        if "sharded" not in self.facts:
            if "launched" not in self.facts:
                return None
            self.assumed.append("sharding = ddp (the launcher is told nothing else)")
            return "ddp"
        if self.facts["sharded"] == "no":
            return "ddp"
        if "fsdp_version" in self.facts:
            return f"fsdp{self.facts['fsdp_version']}"
        version = self._fact("trainer_fsdp_version") if "trainer_fsdp" in self.facts else None
        if version is None:
            self.assumed.append("sharding = fsdp1 (accelerate v1.14.0, utils/dataclasses.py: fsdp_version 1)")
        return f"fsdp{version or 1}"

    def _loss(self) -> str | None:
        if self.facts.get("liger") != "yes":
            return self._fact("loss")
        if self.facts.get("loss") == "chunked":  # trl/trainer/sft_trainer.py refuses it
            raise BadInput("loss_type chunked_nll and Liger's kernel exclude each other")
        return "chunked"

    def _mixed_precision(self) -> str | None:
        """bf16 where either the launcher or the arguments say so; transformers, TrainingArguments.__post_init__."""
        launched = self.facts.get("launch_precision")
        if launched == "bf16":
            return "bf16"
        return self._fact("mixed_precision") or launched

    def _choose_preset(self, method: str, own: Preset) -> None:
        """The preset that has what no field says, LoRA's dropout and which chunked loss; the rest becomes fields."""
        said = {field: value for field, value in {**self.fields, **self.options}.items() if field in SETTINGS}
        comes_with = {**own.values(method, said), **said}
        dropout = None if method == "full" else self._fact("dropout")
        drops = comes_with["lora_dropout"] > 0 if dropout is None else float(dropout) > 0
        own_loss = self.facts.get("liger") != "yes" and self.framework is job_keys().frameworks.get("trl")
        chunked = own.chunked if own_loss else "chunked"
        fitting = (
            name
            for name, preset in {self._preset_name: own, **presets()}.items()
            if (method == "full" or (preset.values(method, said)["lora_dropout"] > 0) == drops)
            and (comes_with["loss"] != "chunked" or preset.chunked == chunked)
        )
        name = next(fitting, "")
        if not name:
            name = self._preset_name
            self.assumed.append(f"LoRA's dropout is counted as the stack {name} has it, which holds more than none")
        self.fields["stack"] = name
        left = [s for s in SETTINGS if s not in said and not (method == "full" and s in _OF_ADAPTERS)]
        if name != self._preset_name:
            self.fields |= {setting: comes_with[setting] for setting in left}
            self.assumed.append(f"stack = {name}, which has the dropout or the loss of these files; all else is said")
        if left:
            rest = ", ".join(f"{setting} = {comes_with[setting]}" for setting in left)
            self.assumed.append(f"{rest}: as the stack {self._preset_name} comes")

    @property
    def _preset_name(self) -> str:
        assert self.framework is not None
        return self.framework.preset
