"""LLaMA-Factory's ``finetuning_type: freeze``, which trains some layers whole: answered by an upper bound.

LLaMA-Factory v0.9.5, src/llamafactory/model/adapter.py, _setup_freeze_tuning: parameters that are trained become
float32, as all do with ``full``; the others keep the dtype of computing, without gradients or states of the optimizer.
src/llamafactory/model/model_utils/checkpointing.py, get_custom_gradient_checkpointing_func: only layers with trained
parameters are checkpointed, so a frozen layer behind a trained one holds all that it computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Setting, text

_TYPE, _NUMBER, _MODULES, _PRO = "finetuning_type", "freeze_trainable_layers", "freeze_extra_modules", "use_llama_pro"
_BEHIND_ALL_LAYERS = {"norm", "lm_head"}  # modules of Llama and others, whose training leaves frozen layers as they are


def with_freeze(found: Sequence[Setting], options: Mapping[str, Any]) -> tuple[list[Setting], list[str]]:
    """Settings without ``freeze`` where options ask for a method that holds more, and a sentence that says so.

    Args:
        found: The settings of a job.
        options: Fields given by options.

    Raises:
        BadInput: The options give no upper bound.

    >>> from autoconf.jobs.importers.key_table import Place
    >>> freeze = [Setting(Place("a.yaml", 3, "finetuning_type"), "llama-factory", "finetuning_type", "freeze")]
    >>> with_freeze(freeze, {"method": "full"})[1]
    ['a.yaml:3 finetuning_type: method = full holds more than freeze, so the answer is an upper bound']
    """
    own = {setting.key: setting for setting in found if setting.dialect == "llama-factory"}
    method = options.get("method")
    if _TYPE not in own or text(own[_TYPE].value) != "freeze" or method not in (None, "full"):
        return list(found), []
    place = own[_TYPE].place
    needs = [] if _only_last(own) or _holds_all(own, options) else ["--gradient-checkpointing none"]
    if method is None:
        ways = " and ".join(["--method full", *needs])
        raise BadInput(
            f"{place}: freeze trains some of the layers, which no setting of a job says, and method full holds more; "
            f"give {ways} for an upper bound"
        )
    if needs:
        raise BadInput(
            f"{place}: LLaMA-Factory recomputes only layers that are trained, so frozen ones behind them hold all that "
            f"they compute; give {needs[0]} for an upper bound"
        )
    bound = f"{place}: method = full holds more than freeze, so the answer is an upper bound"
    return [setting for setting in found if own.get(setting.key) is not setting or setting.key != _PRO], [bound]


def _only_last(own: Mapping[str, Setting]) -> bool:
    """Whether no layer is frozen behind a trained module; a number from 1 on counts the last layers."""
    number = text(own[_NUMBER].value) if _NUMBER in own else "2"
    modules = {*text(own[_MODULES].value).split()} if _MODULES in own else set()
    expanded = _PRO in own and text(own[_PRO].value) != "false"
    return number.isdecimal() and int(number) > 0 and modules <= _BEHIND_ALL_LAYERS and not expanded


def _holds_all(own: Mapping[str, Setting], options: Mapping[str, Any]) -> bool:
    """Whether full holds what all layers compute."""
    disabled = own.get("disable_gradient_checkpointing")
    given = options.get("gradient_checkpointing")
    return given == "none" if given else disabled is not None and text(disabled.value) == "true"
