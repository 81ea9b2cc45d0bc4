"""Measure what the losses of TRL or of LLaMA-Factory hold for each logit, on the CPU, with PyTorch's profiler.

The losses run on a Llama of two narrow layers, so nearly all bytes are those of logits. Neither is a dependency:
``pip install trl==1.9.0`` first, or in another environment ``pip install llamafactory==0.9.5``.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer

from autoconf.errors import BadInput
from autoconf.pipeline.validation import llama_factory_losses

MEASURED = Path(__file__).with_name("objective_truth.csv")
_VOCABULARY, _TOKENS = 4096, 1024
# Methods of TRL's trainers, and an attribute of one.
_LOSS, _OF_KL, _LOGPS = "_compute_loss", "_compute_kl_logps", "_get_per_token_logps_and_entropies"
_OFF = {"_entropy_bonus_enabled": False}
_COLUMNS = ("losses", "objective", "logit", "pairs", "over", "turn", "backward", "on_cpu_alone")
# aten/src/ATen/native/ReduceOps.cpp, mean: on the CPU alone it makes a float32 copy of bfloat16 logits.
_CASTS = "mean of bfloat16 logits in float32"


class _Alone:
    """What the losses need of accelerate on one GPU."""

    device, num_processes, is_main_process = torch.device("cpu"), 1, True

    def gather_for_metrics(self, tensor: Any, **_: Any) -> Any:
        return tensor

    gather = unwrap_model = reduce = gather_for_metrics


def peak_and_end(run: Callable[[], Any]) -> tuple[int, int]:
    """The most bytes that a function allocates, and what it leaves."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    found = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    live = most = 0
    for _, change in found:
        live += change
        most = max(most, live)
    return most, live


def _model(logit: int) -> Any:
    from accelerate.utils import convert_outputs_to_fp32
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=_VOCABULARY, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4)  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if logit == 2:
        return model.to(torch.bfloat16)
    vars(model)["forward"] = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    return model


def _trainer(logit: int, **attributes: Any) -> SimpleNamespace:
    """The attributes of a trainer that its loss reads."""
    model, reference = _model(logit), _model(logit)
    kwargs = {"use_reentrant": False}
    model.gradient_checkpointing_enable(kwargs)
    for parameter in model.train().parameters():
        parameter.grad = torch.zeros_like(parameter)
    return SimpleNamespace(
        model=model, ref_model=reference.eval(), accelerator=_Alone(), aux_loss_enabled=False, beta=0.1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=kwargs), _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, is_encoder_decoder=False, use_liger_kernel=False, **attributes,
    )  # fmt: skip


def _dpo(logit: int, pairs: int, precomputed: bool) -> tuple[Callable[[], Any], int]:
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = _trainer(
        logit, ld_alpha=None, precompute_ref_logps=precomputed, f_divergence_type="reverse_kl", use_weighting=False,
        loss_types=["sigmoid"], loss_weights=[1.0], label_smoothing=0.0,
    )  # fmt: skip
    ids = torch.randint(0, _VOCABULARY, (2 * pairs, _TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ids)}
    inputs |= {f"ref_{which}_logps": torch.zeros(pairs) for which in ("chosen", "rejected")} if precomputed else {}
    return lambda: getattr(DPOTrainer, _LOSS)(trainer, trainer.model, inputs, False), ids.numel()


def _kto(logit: int, samples: int) -> tuple[Callable[[], Any], int]:
    from trl.trainer.kto_trainer import KTOTrainer

    trainer = _trainer(
        logit, precompute_ref_logps=False, calculate_KL=True, loss_type="kto", desirable_weight=1.0,
        undesirable_weight=1.0,
    )  # fmt: skip
    setattr(trainer, _OF_KL, lambda model, batch: getattr(KTOTrainer, _OF_KL)(trainer, model, batch))
    ids = torch.randint(0, _VOCABULARY, (samples, _TOKENS))
    inputs = {"label": torch.ones(samples, dtype=torch.bool)}
    for prefix in ("", "KL_"):
        ones = torch.ones_like(ids)
        inputs |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": ones, f"{prefix}completion_mask": ones}
    return lambda: getattr(KTOTrainer, _LOSS)(trainer, trainer.model, inputs, False), ids.numel()


def _orpo(logit: int, pairs: int) -> tuple[Callable[[], Any], int]:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = _trainer(logit, padding_value=0)
    trainer.concatenated_inputs, trainer.get_batch_logps = ORPOTrainer.concatenated_inputs, ORPOTrainer.get_batch_logps
    trainer.concatenated_forward = lambda *given: ORPOTrainer.concatenated_forward(trainer, *given)
    trainer.odds_ratio_loss = lambda *given: ORPOTrainer.odds_ratio_loss(trainer, *given)
    ids = torch.randint(0, _VOCABULARY, (pairs, _TOKENS))
    inputs = {
        f"{which}_{name}": ids.clone() if name != "attention_mask" else torch.ones_like(ids)
        for which in ("chosen", "rejected")
        for name in ("input_ids", "attention_mask", "labels")
    }
    loss = lambda: ORPOTrainer.get_batch_loss_metrics(trainer, trainer.model, inputs, "train")[0]  # noqa: E731
    return loss, 2 * ids.numel()


def _grpo(logit: int, samples: int) -> tuple[Callable[[], Any], int]:
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = _trainer(
        logit, model_kwarg_keys=("logits_to_keep",), temperature=1.0, top_entropy_quantile=1.0, loss_type="dapo",
        importance_sampling_level="token", off_policy_mask_threshold=None, epsilon_low=0.2, epsilon_high=0.2,
        use_vllm=False, current_gradient_accumulation_steps=1, vllm_importance_sampling_correction=False, **_OFF,
    )  # fmt: skip
    trainer.beta, trainer.args.delta, trainer.args.report_to = 0.0, None, []
    setattr(trainer, _LOGPS, lambda *given, **named: getattr(GRPOTrainer, _LOGPS)(trainer, *given, **named))
    prompt, completion = torch.zeros((samples, 1), dtype=torch.long), torch.randint(0, _VOCABULARY, (samples, _TOKENS))
    inputs = {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": torch.ones_like(completion), "advantages": torch.ones(samples),
        "num_items_in_batch": torch.tensor(float(completion.numel())),
    }  # fmt: skip
    return lambda: getattr(GRPOTrainer, _LOSS)(trainer, trainer.model, inputs), completion.numel()


def measured(losses: str) -> Iterator[dict[str, Any]]:
    """Measure each loss of a library with one and with two samples of the data, and keep the larger figures."""
    of_trl: dict[str, llama_factory_losses.Make] = {
        "dpo": partial(_dpo, precomputed=False),
        "dpo_precomputed": partial(_dpo, precomputed=True),
        "orpo": _orpo,
        "kto": _kto,
        "grpo": _grpo,
    }
    makes = of_trl if losses == "trl" else llama_factory_losses.losses(_trainer, _VOCABULARY)
    for logit in (2, 4):
        for objective, make in makes.items():
            rows = [_measure(*make(logit, count)) for count in (1, 2)]
            over, turn, backward = (round(max(column), 2) for column in zip(*rows, strict=True))
            casts = _CASTS if losses == "trl" and logit == 2 and objective != "grpo" else ""
            yield dict(zip(_COLUMNS, (losses, objective, logit, "1 and 2", over, turn, backward, casts), strict=True))


def _measure(loss: Callable[[], Any], tokens: int) -> tuple[float, float, float]:
    """Bytes for each logit: the most in the forward pass, what it leaves, and the most in the backward pass."""
    found: dict[str, Any] = {}
    over, turn = peak_and_end(lambda: found.update(loss=loss()))
    backward, _ = peak_and_end(lambda: found["loss"].backward())
    logits = tokens * _VOCABULARY
    return over / logits, turn / logits, (turn + backward) / logits


def main(
    losses: Annotated[str, typer.Option(help="trl or llama-factory, which this environment has.")] = "trl",
) -> None:
    """Measure the losses of one library, and write them to the table next to this file."""
    try:
        rows = list(measured(losses))
    except ModuleNotFoundError as error:
        raise BadInput(f"{error}; pip install trl==1.9.0, or llamafactory==0.9.5") from None
    with MEASURED.open() as file:
        rows = sorted([*(row for row in csv.DictReader(file) if row["losses"] != losses), *rows],
                      key=lambda row: row["losses"] != "trl")  # fmt: skip
    with MEASURED.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    typer.run(main)
