"""Write notes on answers: how a name was resolved, and settings that the GPU type cannot run."""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache
from typing import Any, get_args

from autoconf.jobs.job import GPU_MEMORY, STACK_FIELDS, TARGETS, stack_of
from autoconf.jobs.lora_targets import GROUPS, as_setting
from autoconf.jobs.presets import presets
from autoconf.jobs.stack import Objective, Sharding, Stack
from autoconf.memory.checks import LINEAR_EXPERTS
from autoconf.memory.units import Unsupported
from autoconf.planner import hardware
from autoconf.planner.domain import JobColumns, value_of
from autoconf.planner.given_gpus import given_gpus
from autoconf.planner.known_names import names_of
from autoconf.predictor.predictor import Predictor

Notes = tuple[str, ...]
_EXPERTS_WHOLE = (None, "nf4", "nf4_single", "int8")  # values of ``quantization``
# What settings leave open: the setting, values that need no note, and the note.
_LEFT_OPEN = (
    (
        "offload",
        ("none",),
        "offload is counted from the code of DeepSpeed and FSDP, and was not compared with real runs",
    ),
    (
        "gradient_checkpointing",
        ("none", "reentrant", "non-reentrant"),
        "what stays on the GPU of checkpoints that are offloaded is an upper bound from the code of TRL, torchtune and "
        "unsloth, compared with traces of TRL's rules, not with real runs",
    ),
    (
        "quantization",
        ("none", "nf4", "nf4_single", "int8", "gptq", "awq"),
        "experts are quantized as transformers 4 does, whose releases before 4.49 hold some percent more; "
        "compared with traces of release 4.50.3, not with real runs",
    ),
    ("allocator", ("default",), "expandable segments are counted by replays of the allocator, not by real runs"),
    (
        "quantization",
        ("none", "nf4", "nf4_single", "nf4_experts"),
        "what layers over a base in int8, GPTQ or AWQ hold is bounded from the code of its library, outliers of int8 "
        "are not counted, and it was not compared with real runs",
    ),
    (
        "sharding",
        get_args(Sharding),
        "peaks under this sharding are compared with PyTorch's FSDP; what its allocator loses to fragmentation was not "
        "replayed, and counts as that of full sharding",
    ),
    (
        "use_dora",
        (False,),
        "what layers hold for DoRA is bounded from PEFT's code, an upper bound, and was not compared with real runs",
    ),
    (
        "lora_layers",
        ("all",),
        "adapters are counted exactly; layers without them as layers with them, an upper bound, unless they are before "
        "the first layer with adapters and nothing is recomputed",
    ),
    (
        "trained_modules",
        ("none",),
        "embeddings and head that are trained beside adapters are copies, as PEFT makes them without "
        "ensure_weight_tying; peaks are compared with PEFT's modules_to_save, not with real runs",
    ),
    (
        "objective",
        ("sft",),
        "losses of TRL 1.9, or of LLaMA-Factory 0.9.5 in its stack, are counted from their code, and were not compared "
        "with real runs",
    ),
    (
        "objective",
        tuple(name for name in get_args(Objective) if name != "grpo"),
        "grpo is the training step alone: completions are generated on other GPUs, or by a vLLM whose memory is not "
        "part of gpu_memory_gib",
    ),
)


def notes_on(predictor: Predictor, columns: JobColumns) -> list[Notes]:
    """The notes on the answers of one version for valid jobs; without ``gpu_model`` there are none about GPUs."""
    return _writer(predictor)(columns)


class _Writer:
    """Writes the notes of one version, once for equal jobs."""

    def __init__(self, predictor: Predictor) -> None:
        self.domain = predictor.domain
        self.names = names_of(self.domain)
        self.given_gpus = given_gpus(predictor)
        models = self.names["model_name"]
        self.own: dict[str, Container[str]] = {
            "model_name": {spelling for spelling in models.exact if not models.note(spelling)},
            "method": self.names["method"].exact,
            "gpu_model": self.domain.gpus,
        }
        self.doubtful = {
            name for name, gpu in self.domain.gpus.items() if gpu.unverified or hardware.is_too_old(name, gpu)
        }
        self.predictor, self.bounds = predictor, lru_cache(maxsize=4096)(self._bounded_by)
        self.warnings = lru_cache(maxsize=4096)(self._warnings_on)  # a table has few stacks

    def __call__(self, columns: JobColumns) -> list[Notes]:
        fields = [field for field in self.names if field in columns]
        # A name in the domain's own spelling needs no note, unless its model is a part of the checkpoint.
        notes = [
            {name: "" if name in self.own[field] else self.names[field].note(name) for name in set(columns[field])}
            for field in fields
        ]
        gpus = self.names["gpu_model"]
        doubtful = {
            name
            for name in set(columns.get("gpu_model", ()))
            if (name if name in self.domain.gpus else gpus.find(name)) in self.doubtful
        }
        given = self._of_given_gpus(columns)
        of_experts = self._of_experts(columns) if "qlora" in columns["method"] else {}
        of_settings = _of_settings(columns), self._of_targets(columns), of_experts
        for index, notes_of_settings in (item for some in of_settings for item in some.items()):
            given[index] = given.get(index, ()) + notes_of_settings
        if not doubtful and not given and not any(any(of_field.values()) for of_field in notes):
            return [()] * len(columns["model_name"])
        named = (
            tuple(note for of_field, name in zip(notes, names, strict=True) if (note := of_field[name]))
            for names in zip(*(columns[field] for field in fields), strict=True)
        )
        return [
            found + given.get(index, ()) + self._warnings(columns, index, doubtful) for index, found in enumerate(named)
        ]

    def _of_given_gpus(self, columns: JobColumns) -> dict[int, Notes]:
        """The notes on GPUs that jobs give by their memory, by position."""
        if GPU_MEMORY not in columns or "gpu_model" not in columns:
            return {}
        given = self.given_gpus.all_of(columns["gpu_model"], columns[GPU_MEMORY])
        return {index: (gpu.note,) for index, gpu in given.items() if gpu.note}

    def _of_targets(self, columns: JobColumns) -> dict[int, Notes]:
        """The notes on lists of modules for which layers are counted as of a larger group, by position."""
        found: dict[int, Notes] = {}
        for index, targets in enumerate(columns.get(TARGETS, ())):
            if targets is not None and targets not in GROUPS:
                group = self.bounds(columns["model_name"][index], columns["method"][index], targets)
                if group:
                    found[index] = (
                        f"activations are those of lora_targets {group}, an upper bound; adapters are exactly those of "
                        f"{targets}",
                    )
        return found

    def _of_experts(self, columns: JobColumns) -> dict[int, Notes]:
        """The notes on experts that are not quantized, by position."""
        if not self.predictor.knows_host:
            return {}
        asked = {
            index: columns["model_name"][index] for index, method in enumerate(columns["method"]) if method == "qlora"
        }
        said = {written: self._experts_of(written) for written in set(asked.values())}
        return {
            index: (said[written],)
            for index, written in asked.items()
            if said[written] and value_of(columns, "quantization", index) in _EXPERTS_WHOLE
        }

    def _experts_of(self, written: str) -> str:
        model = self.names["model_name"].find(written) or ""
        gib = self.predictor.experts_gib(model) if model in self.domain.models else 0.0
        if not gib:
            return ""
        way_out = "; with transformers 4 give quantization=nf4_experts" if model in LINEAR_EXPERTS else ""
        return f"bitsandbytes does not quantize experts as transformers 5 holds them: {gib:.1f} GiB in 16 bits{way_out}"

    def _bounded_by(self, written: str, method: str, targets: str) -> str:
        model = self.names["model_name"].find(written)
        try:
            stack = Stack(lora_targets=as_setting(targets))
            return "" if model is None else self.predictor.bounded_by(model, method, stack)
        except Unsupported:
            return ""

    def _warnings(self, columns: JobColumns, index: int, doubtful: set[str]) -> Notes:
        if not doubtful or (name := columns["gpu_model"][index]) not in doubtful:
            return ()
        return self.warnings(name, *(value_of(columns, field, index) for field in STACK_FIELDS))

    def _warnings_on(self, written: str, *stack: Any) -> Notes:
        name = str(self.names["gpu_model"].find(written))
        gpu = self.domain.gpus[name]
        found = [f"{name} is not verified: {gpu.unverified}"] if gpu.unverified else []
        settings = stack_of(dict(zip(STACK_FIELDS, stack, strict=True)))
        if hardware.is_too_old(name, gpu) and hardware.needs_newer(settings):
            found.append(hardware.warning(name, gpu, settings))
        return tuple(found)


def _of_settings(columns: JobColumns) -> dict[int, Notes]:
    """The notes on settings that were not held against real runs, and on approximate stacks, by position."""
    found: dict[int, Notes] = {}
    for field, usual, said in _LEFT_OPEN:
        for index, value in enumerate(columns.get(field, ())):
            if value is not None and value not in usual:
                found[index] = (*found.get(index, ()), said)
    for index, name in enumerate(columns.get("stack", ())):
        if name is not None and (how := presets()[name].approximate):
            found[index] = (*found.get(index, ()), f"approximate: {how}")
    return found


@lru_cache(maxsize=8)
def _writer(predictor: Predictor) -> _Writer:
    return _Writer(predictor)
