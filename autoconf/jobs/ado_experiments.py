"""Identifiers of ado's experiments, which have the settings that a space fixes."""

from __future__ import annotations

import re

EXPERIMENT = "experiment_id"  # ado's name for the column
_SETTING = re.compile(r"-(?!v\d)([a-z]\w*)\.")  # but a version, as in -v1.0.0


def settings_in(experiment: str) -> dict[str, str]:
    """The settings in the identifier of an experiment: ado appends them to its name, and has them nowhere else.

    >>> settings_in("custom_experiments.min_gpu_recommender-gpus_per_worker.4-stack.fms-hf-tuning")
    {'gpus_per_worker': '4', 'stack': 'fms-hf-tuning'}
    >>> settings_in("SFTTrainer.finetune_lora_benchmark-v1.0.0-fms_hf_tuning_version.2.8.2-r.8")
    {'fms_hf_tuning_version': '2.8.2', 'r': '8'}
    """
    _, *parts = _SETTING.split(experiment)
    return dict(zip(parts[::2], parts[1::2], strict=True))
