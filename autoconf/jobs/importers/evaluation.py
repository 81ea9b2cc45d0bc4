"""Name an evaluation during the training that takes more samples at once than the training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoconf.jobs.importers.key_table import Setting
from autoconf.jobs.importers.other_files import is_off

_STRATEGIES = ("eval_strategy", "evaluation_strategy")
_BATCHES = ("per_device_eval_batch_size", "eval_batch_size")  # the second of axolotl
_OF_TRAINER = ("arguments", "llama-factory", "peft-sft")  # whose evaluation has transformers' own default
_NUMBER = re.compile(r"[0-9]{1,9}")
_DEFAULT = 8  # transformers 5.23.0 and 4.55.4, training_args.py, per_device_eval_batch_size


def larger_evaluation(settings: Sequence[Setting], fields: Mapping[str, Any]) -> Iterator[str]:
    """A sentence if an evaluation takes more samples at once on each GPU than the training.

    Args:
        settings: The settings of the files of a job.
        fields: The fields of the job, with those that options give.

    >>> from autoconf.jobs.importers.key_table import Place
    >>> found = [Setting(Place("a", 1, "eval_strategy"), "arguments", "eval_strategy", "steps")]
    >>> [*larger_evaluation(found, {"per_device_train_batch_size": 2})]
    ['a:1 eval_strategy: evaluation takes 8 samples at once on each GPU (by default), training 2; it is not counted']
    """
    trained = fields.get("per_device_train_batch_size")
    given = [setting for setting in settings if setting.key in _BATCHES and setting.value is not None]
    batch = next((setting for setting in given if _NUMBER.fullmatch(str(setting.value))), None)
    strategy = next((s for s in settings if s.key in _STRATEGIES and isinstance(s.value, str)), None)
    evaluates = strategy is not None and not is_off(strategy.value)
    by_key = batch is not None and batch.key == _BATCHES[1]
    if trained is None or not (evaluates or by_key):
        return
    if batch is None and (strategy is None or strategy.dialect not in _OF_TRAINER):
        return
    if batch is None and given:
        yield f"{given[0].place}: how many samples evaluation takes at once is not known; it is not counted"
        return
    number = _DEFAULT if batch is None else int(batch.value)
    if number > int(trained):
        place = batch.place if batch is not None else strategy.place if strategy is not None else ""
        yield (
            f"{place}: evaluation takes {number} samples at once on each GPU{' (by default)' * (batch is None)}, "
            f"training {trained}; it is not counted"
        )
