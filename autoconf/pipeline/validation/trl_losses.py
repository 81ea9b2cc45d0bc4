"""The losses of TRL 1.9.0 without its trainers, on any model and any tokens.

TRL is not a dependency of this package: install it first, with ``pip install trl==1.9.0``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from autoconf.jobs.stack import Objective

Make = Callable[..., SimpleNamespace]  # of attributes: a trainer that has them
Loss = Callable[[Make, torch.Tensor], Callable[[], Any]]  # of a trainer and the tokens of samples
# Methods of TRL's trainers, and an attribute of one.
_LOSS, _OF_KL, _LOGPS = "_compute_loss", "_compute_kl_logps", "_get_per_token_logps_and_entropies"
_OFF = {"_entropy_bonus_enabled": False}


class _Alone:
    """What the losses need of accelerate on one GPU."""

    device, num_processes, is_main_process = torch.device("cpu"), 1, True

    def gather_for_metrics(self, tensor: Any, **_: Any) -> Any:
        return tensor

    gather = unwrap_model = reduce = gather_for_metrics


def trainer(model: Any, reference: Any, checkpoints: dict[str, Any] | None, **attributes: Any) -> SimpleNamespace:
    """The attributes of a trainer that its loss reads.

    Args:
        model: the model, which is trained.
        reference: the reference model; ``None`` if adapters are disabled instead, or there is none.
        checkpoints: how layers are recomputed; ``None`` if they are not.
        attributes: further attributes.
    """
    args = SimpleNamespace(gradient_checkpointing_kwargs=checkpoints, center_rewards_coefficient=None)
    return SimpleNamespace(
        model=model, ref_model=reference, accelerator=_Alone(), aux_loss_enabled=False, beta=0.1, args=args,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, is_encoder_decoder=False, use_liger_kernel=False,
        **attributes,
    )  # fmt: skip


def _dpo(make: Make, ids: torch.Tensor, *, precomputed: bool) -> Callable[[], Any]:
    from trl.trainer.dpo_trainer import DPOTrainer

    of = make(
        ld_alpha=None, precompute_ref_logps=precomputed, f_divergence_type="reverse_kl", use_weighting=False,
        loss_types=["sigmoid"], loss_weights=[1.0], label_smoothing=0.0,
    )  # fmt: skip
    pairs = len(ids) // 2
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ids)}
    inputs |= {f"ref_{which}_logps": torch.zeros(pairs) for which in ("chosen", "rejected")} if precomputed else {}
    return lambda: getattr(DPOTrainer, _LOSS)(of, of.model, inputs, False)


def _kto(make: Make, ids: torch.Tensor) -> Callable[[], Any]:
    from trl.trainer.kto_trainer import KTOTrainer

    of = make(
        precompute_ref_logps=False, calculate_KL=True, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0
    )
    setattr(of, _OF_KL, lambda model, batch: getattr(KTOTrainer, _OF_KL)(of, model, batch))
    inputs = {"label": torch.ones(len(ids), dtype=torch.bool)}
    for prefix in ("", "KL_"):
        ones = torch.ones_like(ids)
        inputs |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": ones, f"{prefix}completion_mask": ones}
    return lambda: getattr(KTOTrainer, _LOSS)(of, of.model, inputs, False)


def _orpo(make: Make, ids: torch.Tensor) -> Callable[[], Any]:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    of = make(padding_value=0)
    of.concatenated_inputs, of.get_batch_logps = ORPOTrainer.concatenated_inputs, ORPOTrainer.get_batch_logps
    of.concatenated_forward = lambda *given: ORPOTrainer.concatenated_forward(of, *given)
    of.odds_ratio_loss = lambda *given: ORPOTrainer.odds_ratio_loss(of, *given)
    inputs = {
        f"{which}_{name}": each.clone() if name != "attention_mask" else torch.ones_like(each)
        for which, each in zip(("chosen", "rejected"), ids.chunk(2), strict=True)
        for name in ("input_ids", "attention_mask", "labels")
    }
    return lambda: ORPOTrainer.get_batch_loss_metrics(of, of.model, inputs, "train")[0]


def _grpo(make: Make, ids: torch.Tensor) -> Callable[[], Any]:
    """The loss of completions of all tokens but the first one."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    of = make(
        model_kwarg_keys=("logits_to_keep",), temperature=1.0, top_entropy_quantile=1.0, loss_type="dapo",
        importance_sampling_level="token", off_policy_mask_threshold=None, epsilon_low=0.2, epsilon_high=0.2,
        use_vllm=False, current_gradient_accumulation_steps=1, vllm_importance_sampling_correction=False, **_OFF,
    )  # fmt: skip
    of.beta, of.args.delta, of.args.report_to = 0.0, None, []
    setattr(of, _LOGPS, lambda *given, **named: getattr(GRPOTrainer, _LOGPS)(of, *given, **named))
    prompt, completion = ids[:, :1], ids[:, 1:]
    inputs = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": torch.ones_like(completion), "advantages": torch.ones(len(ids)),
        "num_items_in_batch": torch.full((), float(completion.numel())),
    }  # fmt: skip
    return lambda: getattr(GRPOTrainer, _LOSS)(of, of.model, inputs)


def _reward(make: Make, ids: torch.Tensor) -> Callable[[], Any]:
    from trl.trainer.reward_trainer import RewardTrainer

    of = make()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return lambda: RewardTrainer.compute_loss(of, of.model, inputs)


# Both samples of a pair are rows of the tokens: the chosen samples first.
LOSSES: dict[Objective, Loss] = {
    "dpo": partial(_dpo, precomputed=False),
    "dpo_precomputed": partial(_dpo, precomputed=True),
    "orpo": _orpo,
    "kto": _kto,
    "grpo": _grpo,
    "reward": _reward,
}
