"""Draw random jobs of a version's domain, under random stacks, each with a possible number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pandas as pd

from autoconf.jobs.lora_layers import ALL
from autoconf.jobs.presets import SETTINGS, UP_TO_2_0_0, presets, training_stack
from autoconf.jobs.stack import Attention, Dtype, Loss, MixedPrecision, Optim
from autoconf.predictor.predictor import Predictor

GPUS_PER_WORKER = 8
_CHOICES: dict[str, tuple[Any, ...]] = {
    "optim": get_args(Optim),
    "torch_dtype": get_args(Dtype),
    "adapter_dtype": get_args(Dtype),
    "mixed_precision": get_args(MixedPrecision),
    "loss": get_args(Loss),
    "attention": get_args(Attention),
    "lora_r": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "lora_targets": ("default", "attention", "all-linear"),
    "lora_dropout": (0.0,),  # this and the next one are not drawn, so that jobs stay those of earlier evaluations
    "lora_layers": (ALL,),
}
_CHANGED = 0.25  # how often a job overrides a setting of its preset


def random_stacks(predictor: Predictor, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield random models, methods and stacks of the domain without end; half of them are unchanged presets."""
    domain = predictor.domain
    names, methods = list(domain.models), domain.methods
    stacks = UP_TO_2_0_0 if len(domain.allocator) == 1 else tuple(presets())
    choices = {**_CHOICES, **{name: tuple(known) for name, known in domain.settings.items()}}
    drawn = [name for name in SETTINGS if len(choices[name]) > 1]
    while True:
        job: dict[str, Any] = {
            "model_name": names[generator.integers(len(names))],
            "method": methods[generator.integers(len(methods))],
            "stack": stacks[generator.integers(len(stacks))],
            "gradient_accumulation_steps": int(generator.choice([1, 4])),
        }
        changes = generator.random(len(drawn)) < _CHANGED * (generator.random() < 0.5)
        changed = {
            name: choices[name][generator.integers(len(choices[name]))]
            for name, changes_it in zip(drawn, changes, strict=True)
            if changes_it
        }
        settings = [changed.get(name) for name in SETTINGS]
        steps = job["gradient_accumulation_steps"] > 1
        try:
            stack = training_stack(job["method"], steps, job["stack"], *settings)
            predictor.row(job["model_name"], job["method"], stack)
        except ValueError:  # settings that exclude each other, or Unsupported
            continue
        yield job | dict(zip(SETTINGS, settings, strict=True))


def random_jobs(predictor: Predictor, generator: np.random.Generator, count: int, sizes: int = 1) -> pd.DataFrame:
    """Draw random jobs inside the domain, with tokens and batches evenly distributed over orders of magnitude.

    Args:
        predictor: a version that supports all stacks.
        generator: random generator.
        count: number of models with their stacks.
        sizes: number of GPU types, numbers of GPUs, samples and batches tried for each of them; combinations that
            cannot be split over workers are omitted.

    Returns:
        Columns ``model_name``, ``method``, ``stack``, the settings, ``gradient_accumulation_steps``, ``gpu_model``,
        ``tokens_per_sample``, ``batch_size`` and ``number_gpus``.
    """
    domain = predictor.domain
    stacks = random_stacks(predictor, generator)
    jobs = pd.DataFrame([next(stacks) for _ in range(count)], dtype=object).loc[np.repeat(np.arange(count), sizes)]
    total = len(jobs)

    def orders(high: Any) -> np.ndarray:
        return np.exp(generator.uniform(0, np.log(np.asarray(high) + 1.0), total)).astype(int)

    gpus = orders(domain.max_gpus)
    limits = {name: m.max_tokens_per_sample or domain.max_tokens_per_sample for name, m in domain.models.items()}
    jobs = jobs.assign(
        gpu_model=generator.choice(list(domain.gpus), total),
        tokens_per_sample=orders(jobs["model_name"].map(limits).to_numpy(int)),
        batch_size=gpus * orders(domain.max_batch_size // gpus),
        number_gpus=gpus,
    )
    return jobs[gpus % -(-gpus // GPUS_PER_WORKER) == 0].reset_index(drop=True)
