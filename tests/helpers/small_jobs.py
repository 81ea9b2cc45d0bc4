"""Jobs of a model 128 wide."""

from __future__ import annotations

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import Method, TrainingSetup
from autoconf.pipeline.validation import rank_truth


def small_job(method: Method, gpus: int = 1, layers: int = 2, vocabulary: int = 64, **settings) -> TrainingSetup:
    """Mistral, tuned under a stack with these settings."""
    architecture = rank_truth.small(architectures()["mistral-7b-v0.1"], layers)
    architecture.config["vocab_size"] = vocabulary
    return TrainingSetup(architecture, method, Stack(**settings), gpus)
