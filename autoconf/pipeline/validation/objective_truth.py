"""Measure what the losses of TRL or of LLaMA-Factory hold for each logit, on the CPU, with PyTorch's profiler.

The losses run on a Llama of two narrow layers, so nearly all bytes are those of logits. Neither is a dependency:
``pip install trl==1.9.0`` first, or in another environment ``pip install llamafactory==0.9.5``.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer

from autoconf.errors import BadInput
from autoconf.jobs.stack import Objective
from autoconf.memory.objectives import OF_PAIRS
from autoconf.pipeline.validation import llama_factory_losses, trl_losses

MEASURED = Path(__file__).with_name("objective_truth.csv")
_VOCABULARY, _TOKENS = 4096, 1024
_COLUMNS = ("losses", "objective", "logit", "pairs", "over", "turn", "backward", "on_cpu_alone")
# aten/src/ATen/native/ReduceOps.cpp, mean: on the CPU alone it makes a float32 copy of bfloat16 logits.
_CASTS = "mean of bfloat16 logits in float32"


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
    """A trainer of a narrow model, with gradients."""
    model, reference = _model(logit), _model(logit)
    kwargs = {"use_reentrant": False}
    model.gradient_checkpointing_enable(kwargs)
    for parameter in model.train().parameters():
        parameter.grad = torch.zeros_like(parameter)
    return trl_losses.trainer(model, reference.eval(), kwargs, **attributes)


def _of_trl(objective: Objective, logit: int, count: int) -> tuple[Callable[[], Any], int]:
    """A loss of TRL on a number of samples of the data, and the tokens of its logits."""
    rows, prompt = count * (2 if objective in OF_PAIRS else 1), int(objective == "grpo")
    ids = torch.randint(0, _VOCABULARY, (rows, prompt + _TOKENS))
    return trl_losses.LOSSES[objective](partial(_trainer, logit), ids), rows * _TOKENS


def measured(losses: str) -> Iterator[dict[str, Any]]:
    """Measure each loss of a library with one and with two samples of the data, and keep the larger figures."""
    of_trl: dict[str, llama_factory_losses.Make] = {
        objective: partial(_of_trl, objective) for objective in trl_losses.LOSSES if objective != "reward"
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
