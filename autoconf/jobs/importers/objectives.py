"""Find the objective of a job: supervised fine-tuning, a loss of TRL, or one that is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Place, Setting, any_of, text
from autoconf.jobs.importers.other_files import is_off, keys_of_objectives, words_of
from autoconf.jobs.importers.words import described

DIALECT = "objective"  # of settings that say something about it
_KINDS = {
    **dict.fromkeys(("dpo", "kto", "orpo", "cpo", "simpo", "ipo", "bco", "spin"), "preference optimization"),
    "grpo": "GRPO",
    **dict.fromkeys(("ppo", "rloo", "rlhf", "reinforce", "gspo", "dapo"), "reinforcement learning"),
    **dict.fromkeys(("reward", "rm", "prm"), "reward modeling"),
    **dict.fromkeys(("distill", "distillation", "gkd", "kd", "minillm"), "distillation"),
    **dict.fromkeys(("pretrain", "pretraining", "mlm"), "pretraining"),
}
# The objectives of a kind that are answered.
_ANSWERED = {
    "preference optimization": ("dpo", "dpo_precomputed", "orpo", "kto"),
    "KTO": ("kto",),
    "reward modeling": ("reward",),
    "GRPO": ("grpo",),
    "online reinforcement learning": ("grpo",),  # keys that GRPO has in common with other objectives
}
# Trainers whose losses are known, so that a name such as dpo is certain.
_TRAINERS = ("trl", "trl before 1.0")
# Trainers whose keys or commands say it, whatever the files are called.
_SAYING = ("llama-factory", "axolotl", "ms-swift", "openrlhf")
_GRPO = ("grpo",)
_ADAPTS = ("use_peft", "lora_*", "adapter", "finetuning_type")
_PRECOMPUTES = "precompute_ref_log_probs"
# Keys of losses of TRL that change no memory, and keys that other objectives have as well.
_OF_LOSSES = ("loss_type", "loss_weights", "label_smoothing", "max_completion_length", "truncation_mode")
_OWN_REFERENCE = ("ref_model", "ref_model_*")
# Values of loss_type: trl v1.9.0, trl/trainer/dpo_trainer.py, kto_trainer.py and grpo_trainer.py; kto_pair and aot_pair
# are of releases before 1.0. A user's script may have other losses, whose memory is not known.
_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm", "kto", "apo_zero_unpaired", "kto_pair", "aot_pair",
    "grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo",
)  # fmt: skip


def objective_in(name: str) -> str | None:
    """The kind of objective, other than supervised fine-tuning, in the name of a script, a module or a file.

    >>> objective_in("scripts/train_dpo.py"), objective_in("trl.scripts.sft"), objective_in("dpo_data_sft.yaml")
    ('preference optimization', None, None)
    """
    word = _word_of(name)
    return None if word is None else _KINDS[word]


def _word_of(name: str) -> str | None:
    words = words_of(name)
    return None if "sft" in words else next((word for word in words if word in _KINDS), None)


def hint(place: Place, name: str) -> Setting:
    """What a name says about the objective, such as ``dpo`` of ``scripts/dpo.py``.

    Args:
        place: Where the name is.
        name: The name, in which ``objective_in`` finds an objective.

    Raises:
        BadInput: It is an objective that is not answered.
    """
    if (kind := objective_in(name)) not in _ANSWERED:
        refuse_objective(place, f"{kind} ({described(name)})")
    return Setting(place, DIALECT, _word_of(name) or "", name)


def uncertain_objectives(settings: Iterable[Setting]) -> tuple[str, ...]:
    """The objectives that hints leave open where other settings, which are not known, decide between them.

    >>> uncertain_objectives([hint(Place("train.py"), "DPO")])
    ('dpo', 'dpo_precomputed')
    """
    words = {setting.key for setting in settings if setting.dialect == DIALECT}
    return ("dpo", "dpo_precomputed") if words == {"dpo"} else ()


def with_objective(
    settings: Sequence[Setting], files: Iterable[str], framework: str | None, options: Mapping[str, Any]
) -> list[Setting]:
    """The settings with the one that states the objective, and without those that matter for its loss alone.

    Args:
        settings: Settings, with hints.
        files: The files, whose names say something as well.
        framework: The trainer.
        options: Fields given by options, which decide.

    Raises:
        BadInput: The objective is not answered, or it is not certain and no option gives it.
    """
    hints = [setting for setting in settings if setting.dialect == DIALECT]
    hints += [hint(Place(file), name) for file in files if (name := _named(file))]
    of_keys = [(setting, kind) for setting in settings if (kind := _kind_of_key(setting))]
    rest = [setting for setting in settings if setting.dialect != DIALECT]
    if options.get("objective") == "sft" or not (hints or of_keys) or framework in _SAYING:
        return rest
    words = list(dict.fromkeys(found.key for found in hints))
    of_names = [(found.place, _KINDS[found.key]) for found in hints]
    kinds = [*of_names, *((found.place, kind) for found, kind in of_keys if not of_names or kind not in _ANSWERED)]
    # What is not answered comes first, then GRPO, whose keys other objectives have as well.
    place, kind = min(kinds, key=lambda found: {(): 0, _GRPO: 1}.get(_ANSWERED.get(found[1], ()), 2))
    if kind not in _ANSWERED:
        refuse_objective(place, kind)
    answered = _ANSWERED[kind]
    given = options.get("objective")
    if answered == _GRPO:
        _check_grpo(place, given, rest, options)
    if given is not None and given not in answered:
        raise BadInput(f"{place}: {kind}, and the option --objective is {given}; it may be {', '.join(answered)}")
    rest = _without_same_reference(rest, options)
    if own := next((s for s in rest if _matches(s, _OWN_REFERENCE) and not is_off(s.value)), None):
        raise BadInput(f"{own.place}: a reference model of its own is not covered")
    stated = []
    if given is None:
        _check_losses(rest)
        if len(words) != 1 or words[0] not in answered or framework not in _TRAINERS:
            ways = " or ".join(answered)
            raise BadInput(f"{place}: {kind}; which objective is not certain; give --objective {ways}")
        precomputes = any(_matches(s, (_PRECOMPUTES,)) and not is_off(s.value) for s in rest)
        objective = "dpo_precomputed" if words[0] == "dpo" and precomputes else words[0]
        stated = [Setting(hints[0].place, DIALECT, "objective", objective)]
    of_loss = {id(setting) for setting, _ in of_keys}
    return [*stated, *(s for s in rest if id(s) not in of_loss and not _matches(s, (*_OF_LOSSES, _PRECOMPUTES)))]


def _without_same_reference(settings: Sequence[Setting], options: Mapping[str, Any]) -> list[Setting]:
    """The settings without a reference that is the model itself, a copy of which TRL makes in any case."""
    models = {str(s.value) for s in settings if _matches(s, ("model_name_or_path",))}
    adapts = any(_matches(s, _ADAPTS) and not is_off(s.value) for s in settings)
    if adapts or options.get("method", "full") != "full":
        return list(settings)
    return [s for s in settings if not (_matches(s, ("ref_model",)) and {str(s.value)} == models)]


def _check_losses(settings: Iterable[Setting]) -> None:
    """Refuse a loss that is not one of TRL, because what it holds is not known."""
    for setting in settings:
        if _matches(setting, ("loss_type",)) and (own := sorted({*text(setting.value).split()} - {*_LOSSES})):
            raise BadInput(
                f"{setting.place}: {described(' '.join(own))} is not a loss of TRL's trainers, so its memory is "
                "not known; give --objective for that of TRL's loss"
            )


def _check_grpo(place: Place, given: str | None, settings: Sequence[Setting], options: Mapping[str, Any]) -> None:
    """Check that an option asks for the training step of GRPO, and that no reference model is trained against."""
    if given is None:
        raise BadInput(
            f"{place}: GRPO is answered for its training step alone, without the generation of completions; give "
            "--objective grpo and --tokens-per-sample of a prompt with its completion, and if vLLM shares the GPUs, "
            "--gpu-memory-gib of what it leaves"
        )
    beta = next((s for s in settings if _matches(s, ("beta",)) and str(s.value) not in ("0", "0.0")), None)
    adapts = any(_matches(s, _ADAPTS) and not is_off(s.value) for s in settings)
    adapts |= options.get("method", "full") != "full"
    if beta is not None and not adapts:
        raise BadInput(
            f"{beta.place}: beta {beta.value} needs a reference model, which is not counted with objective grpo; with "
            "adapters there is none (give --method lora or qlora)"
        )


def check_given(found: Setting, options: Mapping[str, Any]) -> None:
    """Check that an option gives an objective that a name only suggests.

    Raises:
        BadInput: It does not.
    """
    with_objective([found], (), None, options)


def _named(file: str) -> str | None:
    """The name of a file, or of the folder of recipes such as ``dpo/config_full.yaml``, that says something."""
    kind = objective_in(Path(file).name)
    if kind and kind != "distillation":  # many are named after data that another model generated
        return Path(file).name
    folder = Path(file).parent.name
    is_sft = "sft" in words_of(Path(file).name)
    if _KINDS.get(folder.casefold()) in ("preference optimization", "reinforcement learning") and not is_sft:
        return folder
    return None


def _matches(setting: Setting, patterns: tuple[str, ...]) -> bool:
    if setting.dialect not in ("arguments", "axolotl", "open-instruct"):
        return False
    return any_of(patterns).match(setting.key.rpartition(".")[2]) is not None


def _kind_of_key(setting: Setting) -> str | None:
    if is_off(setting.value):
        return None
    return next((kind for kind, keys in keys_of_objectives().items() if _matches(setting, keys)), None)


def refuse_objective(place: Place, objective: str) -> NoReturn:
    """Refuse an objective that is not answered."""
    raise BadInput(f"{place}: {objective} is not supervised fine-tuning, nor a loss of TRL that is answered")
