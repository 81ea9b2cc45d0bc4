"""Translate settings read from files into job fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.checkpoints import checkpointing, of_adapters_under_zero3
from autoconf.jobs.importers.evidence import Evidence
from autoconf.jobs.importers.facts import FACTS_OF, Reading, Source, adapters_in_question, named, options_of
from autoconf.jobs.importers.fsdp import sharding_of
from autoconf.jobs.importers.gpus_of_job import Counted
from autoconf.jobs.importers.key_table import Framework, Setting, job_keys
from autoconf.jobs.importers.quantized_base import adapter_dtype, quantization, upcast
from autoconf.jobs.importers.schedulers import Request
from autoconf.jobs.job import BATCHES, OPTIONAL
from autoconf.jobs.names import key
from autoconf.jobs.presets import SETTINGS, Preset, presets
from autoconf.jobs.stack import sharding_parts

# Defaults of a framework that are also settings of a stack; a stack given as an option overrides them.
_OF_STACK = ("checkpointing", "mixed_precision", "torch_dtype", "loss", "optim", "adapter_dtype", "lora_r", "dropout")
_COPIED = ("adapter_dtype", "lora_r", "lora_targets", "trained_modules", "use_dora", "lora_layers")
_OF_ADAPTERS = (*_COPIED, "dropout", "lora_dropout")  # dropout decides which preset
_OF_QUANTIZED = ("upcast_unquantized", "quantization")
_NO_ARGUMENTS = f"no file has training arguments: all other settings are those of the stack {OPTIONAL['stack']}"
_UNCHANGED = (
    "model_name", "gpu_model", "tokens_per_sample", "gradient_accumulation_steps", "torch_dtype", "allocator",
    "gradient_sync", "attention", "loading",
)  # fmt: skip


# Facts whose defaults are used only if the files provably belong to the framework.
_DECISIVE = ("adapters", "per_device_train_batch_size", "tokens_per_sample", "lora_r", "lora_targets")
_LONGEST_MESSAGE = 900


class JobFile(NamedTuple):
    """The job that files describe.

    Attributes:
        fields: Fields of a ``Workload``, without those given by options.
        read, assumed, ignored, unknown: A sentence for each setting, default or key.
        sources: The settings that decide a field.
        evidence: The framework of the files, and the evidence.
        asked: Hints in the files that do not decide a field.
        requests: The counts requested from a scheduler.
        counted: The GPUs that the files request.
    """

    fields: dict[str, Any]
    read: tuple[str, ...]
    assumed: tuple[str, ...]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    evidence: Evidence = Evidence(None, False, ())
    asked: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()
    counted: Counted = Counted()

    def origin(self, field: str) -> str:
        """The origin of a field, in a few words."""
        facts = {field, *FACTS_OF.get(field, ())}
        found = [str(source.setting.place) for source in self.sources if facts & set(source.facts)]
        named = {field, f"{field} ("}
        assumed = [
            a for a in self.assumed if any(a.startswith(f"{n} = ") or (n[-1] == "(" and a.startswith(n)) for n in named)
        ]
        return ", ".join(found) or "; ".join(f"assumed: {a}" for a in assumed) or "options"


def job_of(found: Iterable[Setting], evidence: Evidence, options: Mapping[str, Any]) -> JobFile:
    """Translate the settings of files to a job.

    Args:
        found: The settings of the files, in any order.
        evidence: The trainer of the files.
        options: Fields given by options; they override the files, whose settings for these fields are not read.

    Raises:
        BadInput: A relevant setting cannot be read, or contradicts another setting.

    >>> from autoconf.jobs.importers.key_table import Place
    >>> found = [Setting(Place("job.yaml", 3, "optim"), "arguments", "optim", "sgd")]
    >>> job_of(found, Evidence("trl", True, ()), {}).fields["optim"]
    'sgd'
    """
    reading = Reading(options)
    for setting in found:
        reading.take(setting)
    reading.check_sharding()
    if reading.problems:
        reading.problems += adapters_in_question(reading, options)
        raise BadInput(_together(reading.problems))
    framework = None if evidence.framework is None else job_keys().frameworks[evidence.framework]
    translation = _Translation(reading, framework, evidence.proven, options)
    translation.combine()
    return JobFile(
        fields=translation.fields,
        read=(*reading.notes, *map(str, reading.sources)),
        assumed=tuple(translation.assumed),
        ignored=tuple(reading.ignored),
        unknown=tuple(reading.unknown),
        sources=tuple(reading.sources),
        evidence=evidence,
        asked=tuple(translation.asked),
    )


def _together(problems: Sequence[str]) -> str:
    """Join problems in one line, as many as fit."""
    shown: list[str] = []
    for problem in problems:
        if shown and sum(map(len, shown)) + len(problem) > _LONGEST_MESSAGE:
            break
        shown.append(problem)
    more = len(problems) - len(shown)
    return "; ".join([*shown, f"and {more} more problems"] if more else shown)


class _Translation:
    """Converts facts to fields; fields without facts come from the framework, then from its preset."""

    def __init__(self, reading: Reading, framework: Framework | None, proven: bool, options: Mapping[str, Any]) -> None:
        self._proven = proven
        self.asked: list[str] = []
        self._reading = reading
        self.facts = reading.facts
        self.fields: dict[str, Any] = {}
        self.assumed = reading.assumptions()
        self.options = options
        self.framework = framework
        if self.facts.pop("packed", None):
            reading.notes.append("samples are packed: each has the maximum number of tokens")

    def _fact(self, fact: str) -> Any:
        """The value of a fact in the files, or else the framework's default."""
        if fact in self.facts:
            return self.facts[fact]
        if self.framework is not None and fact in self.framework.needs:
            raise BadInput(self.framework.needs[fact])
        if self.framework is None or fact not in self.framework.defaults:
            return None
        if "stack" in self.options and fact in _OF_STACK:
            return None
        if fact in _DECISIVE and not self._proven:
            return None
        default = self.framework.defaults[fact]
        self.assumed.append(f"{named(fact)} = {default.value} ({default.source})")
        return default.value

    def combine(self) -> None:
        if "stack" not in self.options:
            self.assumed += [note for note in [self.framework.note if self.framework else _NO_ARGUMENTS] if note]
        elif self.framework not in (None, job_keys().frameworks.get(self.options["stack"])):
            self.assumed.append(f"settings left out are of the stack {self.options['stack']}, not the trainer's own")
        method = self._put("method", self._method)
        self._put("objective", self._objective)
        trains_all = method is not None and key(str(method)) == "full"
        of_files = self.facts, self._fact, self.framework, self.assumed
        checkpoints = partial(checkpointing, *of_files, trains_all=trains_all, stack=self.options.get("stack"))
        recomputes = self._put("gradient_checkpointing", checkpoints)
        if (self._own_losses(), self.fields.get("objective"), recomputes) == (True, "reward", "none"):
            raise BadInput(
                "gradient_checkpointing: without it LLaMA-Factory's reward model holds hidden states of all layers, "
                "which are not counted; give --gradient-checkpointing"
            )
        sharding = self._put("sharding", self._sharding)
        self.fields |= of_adapters_under_zero3(self.framework, method, sharding, self.fields, self.assumed)
        self._check_full(method, sharding)
        self._put("offload", lambda: self._offload(str(sharding)))
        self._put("mixed_precision", self._mixed_precision)
        self._put("loss", self._loss)
        self._put("optim", self._optimizer)
        self._batch()
        trains = "full" if method is None else key(str(method))
        for field in _UNCHANGED:
            # A 4-bit base is never float32, and the preset knows the dtypes with which fp16 works.
            if field != "torch_dtype" or field in self.facts or not (trains == "qlora" or self._scales()):
                self._put(field, lambda field=field: self._fact(field))
        for field in _OF_ADAPTERS if trains == "full" else ():
            if self.facts.pop(field, None) is not None:
                self._reading.ignored.append(f"{field}: no adapters are trained")
        for field in _COPIED if trains != "full" else ():
            if field == "adapter_dtype" and trains == "qlora" and "stack" not in self.options and not self._scales():
                self._put(field, self._dtype_on_quantized)
            elif field != "adapter_dtype" or field in self.facts or not self._scales():
                self._put(field, lambda field=field: self._fact(field))
        if trains == "qlora":
            self._put("quantization", lambda: quantization(self.facts, self._fact))
            self._put("upcast_unquantized", lambda: upcast(self.facts, self._fact, self._computes()))
        if method is not None and trains != "full" and self.framework is not None:
            self._ask_for_adapters()
        if self.framework is not None and self.framework.without_preset and "stack" not in self.options:
            raise BadInput(self.framework.without_preset)
        if self.framework is not None and "stack" not in self.options:
            self._choose_preset(trains, presets()[self.framework.preset])

    def _check_full(self, method: str | None, sharding: str | None) -> None:
        """Refuse to train all parameters without what the framework needs to hold them as its preset does."""
        is_full = key(str(method)) == "full" and not sharding_parts(str(sharding))[0].startswith("fsdp")
        if self.framework is None or not is_full or {"stack", "torch_dtype"} & set(self.options):
            return
        if missing := next((why for fact, why in self.framework.needs_of_full.items() if fact not in self.facts), ""):
            raise BadInput(missing)

    def _dtype_on_quantized(self) -> str | None:
        of_base = {field: value for field, value in self.options.items() if field in _OF_QUANTIZED}
        facts = {**self.facts, **of_base}
        return adapter_dtype(facts, self._fact, self.framework, self._computes(), self.assumed)

    def _ask_for_adapters(self) -> None:
        """Refuse a job without settings of adapters, unless the files provably belong to the framework."""
        given = {**self.fields, **self.options}
        missing = [field for field in ("lora_r", "lora_targets") if field not in given]
        if missing and not self._proven and "stack" not in self.options:
            raise BadInput(
                f"{' and '.join(missing)}: not in the files, whose trainer is not certain; "
                f"give {' and '.join(options_of([field]) for field in missing)}"
            )

    def _put(self, field: str, value: Any) -> Any:
        """Set a field, unless an option sets it; return the value."""
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
            self.assumed.append("the batch on each GPU stays the same: another number of GPUs changes the global batch")

    def _method(self) -> str | None:
        quantized = self.facts.get("quantized") == "yes"
        adapters = self.facts.get("adapters")
        self.asked += adapters_in_question(self._reading, self.options)
        if adapters is None and not self.asked:
            adapters = self._fact("adapters")
        if quantized and adapters == "no":
            raise BadInput("method: a quantized base without adapters cannot be trained")
        if adapters is None:
            return "qlora" if quantized else None
        return "full" if adapters == "no" else "qlora" if quantized else "lora"

    def _sharding(self) -> str | None:
        if self.facts.get("launched") == "deepspeed" and (stage := self._fact("zero_stage")) is not None:
            self.facts.setdefault("zero_stage", stage)
        if {"deepspeed", "zero_stage"} & set(self.facts):
            return self._zero()
        if "sharded" not in self.facts and (sharded := self._fact("sharded")):
            self.facts |= {"sharded": sharded, "fsdp_version": self._fact("fsdp_version")}
        if "sharded" not in self.facts:
            if "launched" not in self.facts:
                return None
            if self.facts["launched"] == "deepspeed":
                raise BadInput(
                    "sharding: the launcher is deepspeed, and no file says which stage of ZeRO; "
                    "give DeepSpeed's config by --job, or give --sharding"
                )
            own = "" if self.framework else "; the script is not known here: if it shards the model, give --sharding"
            self.assumed.append(f"sharding = ddp (the default of the launcher{own})")
            return "ddp"
        if self.facts["sharded"] == "no":
            return "ddp"
        if "fsdp_version" in self.facts:
            return sharding_of(self.facts["fsdp_version"], self.facts, self.assumed)
        version = self._fact("trainer_fsdp_version") if "trainer_fsdp" in self.facts else None
        if version is None:
            self.assumed.append("sharding = fsdp1 (accelerate v1.14.0, utils/dataclasses.py: fsdp_version 1)")
        return sharding_of(version or 1, self.facts, self.assumed)

    def _offload(self, sharding: str) -> str | None:
        """What the host holds; FSDP offloads all at once, DeepSpeed parameters under ZeRO-3 alone."""
        who, _ = sharding_parts(sharding)
        optimizer = sharding.startswith("zero") and self.facts.get("offload_optimizer") == "yes"
        parameters = sharding == "zero3" and self.facts.get("offload_parameters") == "yes"
        if (optimizer and parameters) or (who.startswith("fsdp") and self.facts.get("fsdp_offload") == "yes"):
            return "optimizer_and_parameters"
        given: str | None = self.facts.get("offload")
        return "optimizer" if optimizer else "parameters" if parameters else given

    def _zero(self) -> str:
        if self.facts.get("sharded") == "yes":
            raise BadInput("sharding: both FSDP and DeepSpeed are set; a job has one of them")
        launched = self.facts.get("launched_stage") if "deepspeed" in self.facts else None
        stage = self.facts.get("zero_stage", launched)
        if launched not in (None, stage):
            raise BadInput(f"sharding: the launcher sets stage {launched} of DeepSpeed, and its config stage {stage}")
        if stage is None:
            stage = 2
            self.assumed.append("sharding = zero2 (accelerate v1.14.0, utils/dataclasses.py: zero_stage 2)")
        if stage == 0:
            self.assumed.append("sharding = ddp (stage 0 of DeepSpeed, whose own optimizer for bf16 is not counted)")
        return f"zero{stage}" if stage else "ddp"

    def _optimizer(self) -> str | None:
        """The optimizer of DeepSpeed's config, or else of the arguments: transformers, deepspeed_optim_sched."""
        own: str | None = self.facts.get("deepspeed_optim")
        own = "adamw_torch" if own and self.facts.get("torch_adam") == "yes" else own
        if own is None:
            named: str | None = self._fact("optim")
            return named
        self.assumed.append(
            f"optim = {own} (DeepSpeed's config has an optimizer, which replaces that of the arguments)"
        )
        return own

    def _objective(self) -> str | None:
        """The objective, which LLaMA-Factory and axolotl give by several keys."""
        objective: str | None = self.facts.get("objective", self.facts.get("preference"))
        if objective and self.framework and not self._own_losses():
            self.assumed.append(f"objective = {objective} (as TRL 1.9.0 computes its loss)")
        if objective == "dpo" and self.facts.get("without_reference") == "yes":
            self.assumed.append("objective = orpo (LLaMA-Factory's losses without a reference model hold the same)")
            return "orpo"
        return "dpo_precomputed" if objective == "dpo" and self.facts.get("precomputed") == "yes" else objective

    def _own_losses(self) -> bool:
        return self.framework is job_keys().frameworks["llama-factory"]

    def _loss(self) -> str | None:
        objective = {"objective": "sft", **self.fields, **self.options}["objective"]
        if objective != "sft":
            # llamafactory/model/loader.py, apply_liger_kernel: with logits for any stage but sft, so without its loss.
            if self.facts.get("liger") == "yes" and not self._own_losses():
                raise BadInput(f"loss: Liger's fused loss is not covered with objective {objective}")
            return None if "stack" in self.options else "full"
        if self.facts.get("liger") != "yes":
            loss: str | None = self._fact("loss")
            is_trl = self.framework is job_keys().frameworks["trl"] and "stack" not in self.options
            if loss is not None or not is_trl or self._proven:
                return loss
            self.assumed.append("loss = full (which holds more than TRL's own over chunks; the trainer is not certain)")
            return "full"
        if self.facts.get("loss") == "chunked":  # trl/trainer/sft_trainer.py refuses it
            raise BadInput("loss_type chunked_nll and Liger's kernel exclude each other")
        return "chunked"

    def _mixed_precision(self) -> str | None:
        """The precision of the arguments, or else of the launcher; transformers, TrainingArguments.__post_init__."""
        given, launched = self.facts.get("mixed_precision"), self.facts.get("launch_precision")
        if self.facts.get("fp16") == "yes":
            if given == "bf16":
                raise BadInput("mixed_precision: both bf16 and fp16 are set, which the Trainer refuses")
            return "fp16"
        if launched in ("bf16", "fp16"):
            return "bf16" if given == "bf16" else launched
        if given is None and self.facts.get("pure") == "yes":
            return "no"
        if self.framework is job_keys().frameworks["open-instruct"] and "launched" not in self.facts:
            return None  # a config without its launcher, whose precision and sharding are the preset's
        found: str | None = self._fact("mixed_precision")
        return found or launched

    def _scales(self) -> bool:
        """Whether gradients are scaled, which float16 needs."""
        return self._computes() == "fp16"

    def _computes(self) -> str | None:
        found: str | None = {**self.fields, **self.options}.get("mixed_precision")
        return found

    def _choose_preset(self, method: str, own: Preset) -> None:
        """Choose the preset for the kind of chunked loss, which is not a field; set other fields."""
        given = {field: value for field, value in {**self.fields, **self.options}.items() if field in SETTINGS}
        dropout = None if method == "full" or "lora_dropout" in given else self._fact("dropout")
        if dropout is not None and (float(dropout) > 0) != (own.values(method, given)["lora_dropout"] > 0):
            self.fields["lora_dropout"] = given["lora_dropout"] = float(dropout)
        of_files = {} if dropout is None else {"lora_dropout": float(dropout)}
        comes_with = {**own.values(method, given), **of_files, **given}
        # Trainers without a preset of their own have TRL's chunked loss, unless they have Liger's.
        own_loss = self.facts.get("liger") != "yes" and self._preset_name == "trl"
        chunked = own.chunked if own_loss else "chunked"
        name = next(
            name
            for name, preset in {self._preset_name: own, **presets()}.items()
            if comes_with["loss"] != "chunked" or preset.chunked == chunked
        )
        self.fields["stack"] = name
        excluded = (*(_OF_ADAPTERS if method == "full" else ()), *(_OF_QUANTIZED if method != "qlora" else ()))
        left = [setting for setting in SETTINGS if setting not in (*given, *excluded)]
        if name != self._preset_name:
            self.fields |= {setting: comes_with[setting] for setting in left}
            self.assumed.append(f"stack = {name}, which has the loss of these files; all other settings are set")
        if by_default := [setting for setting in left if dropout is None or setting != "lora_dropout"]:
            rest = ", ".join(f"{setting} = {comes_with[setting]}" for setting in by_default)
            self.assumed.append(f"{rest}: defaults of the stack {self._preset_name}")

    @property
    def _preset_name(self) -> str:
        assert self.framework is not None
        return self.framework.preset
