"""The losses of LLaMA-Factory 0.9.5 for ``objective_truth``, which measures them.

They need an environment of their own: ``pip install llamafactory==0.9.5``, which brings TRL 0.24.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import torch

Make = Callable[[int, int], tuple[Callable[[], Any], int]]  # of bytes of a logit and samples: a loss, and its tokens
_TOKENS = 1024


def losses(trainer: Callable[..., SimpleNamespace], vocabulary: int) -> dict[str, Make]:
    """The losses by objective.

    Args:
        trainer: A function that makes the attributes of a trainer on a narrow model.
        vocabulary: Logits of a token of that model.
    """
    return {
        "dpo": partial(_dpo, trainer, vocabulary, "sigmoid"),
        "orpo": partial(_dpo, trainer, vocabulary, "orpo"),
        "kto": partial(_kto, trainer, vocabulary),
        "reward": partial(_reward, trainer, vocabulary),
    }


def _samples(vocabulary: int, samples: int, prefix: str = "") -> dict[str, Any]:
    ids = torch.randint(0, vocabulary, (samples, _TOKENS))
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": torch.ones_like(ids), f"{prefix}labels": ids}


def _with_methods(trainer: SimpleNamespace, of: type, *names: str) -> SimpleNamespace:
    for name in names:
        setattr(trainer, name, MethodType(getattr(of, name), trainer))
    return trainer


def _dpo(make: Any, vocabulary: int, loss: str, logit: int, pairs: int) -> tuple[Callable[[], Any], int]:
    from llamafactory.train.dpo.trainer import CustomDPOTrainer

    trainer = make(
        logit, loss_type=loss, ld_alpha=None, reference_free=False, label_smoothing=0.0, simpo_gamma=0.5, ftx_gamma=0.0,
        f_divergence_type="reverse_kl", bco_gemma=0.0, finetuning_args=SimpleNamespace(use_ref_model=loss != "orpo"),
    )  # fmt: skip
    methods = ("concatenated_forward", "compute_reference_log_probs", "compute_preference_loss", "dpo_loss")
    _with_methods(trainer, CustomDPOTrainer, *methods, "odds_ratio_loss")
    batch = _samples(vocabulary, 2 * pairs)
    return (
        lambda: CustomDPOTrainer.get_batch_loss_metrics(trainer, trainer.model, dict(batch))[0],
        batch["input_ids"].numel(),
    )


def _kto(make: Any, vocabulary: int, logit: int, samples: int) -> tuple[Callable[[], Any], int]:
    from llamafactory.train.kto.trainer import CustomKTOTrainer

    trainer = make(
        logit, loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0, ftx_gamma=0.0
    )
    methods = ("forward", "concatenated_forward", "compute_reference_log_probs", "kto_loss")
    _with_methods(trainer, CustomKTOTrainer, *methods)
    batch = _samples(vocabulary, samples) | _samples(vocabulary, samples, "kl_")
    batch["kto_tags"] = torch.ones(samples, dtype=torch.bool)
    return (
        lambda: CustomKTOTrainer.get_batch_loss_metrics(trainer, trainer.model, batch)[0],
        batch["input_ids"].numel(),
    )


def _reward(make: Any, vocabulary: int, logit: int, pairs: int) -> tuple[Callable[[], Any], int]:
    from llamafactory.train.rm.trainer import PairwiseTrainer
    from trl import AutoModelForCausalLMWithValueHead

    trainer = make(logit)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(trainer.model)
    batch = _samples(vocabulary, 2 * pairs)
    del batch["labels"]
    return lambda: PairwiseTrainer.compute_loss(trainer, model, batch), batch["input_ids"].numel()
