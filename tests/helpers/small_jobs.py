"""Jobs of a model 128 wide, and one GPU's part of them on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.model_setup import Method, Rank, TrainingSetup
from autoconf.pipeline.validation import rank_truth


def small_job(method: Method, gpus: int = 1, layers: int = 2, vocabulary: int = 64, **settings) -> TrainingSetup:
    """Mistral, tuned under a stack with these settings."""
    architecture = rank_truth.small(architectures()["mistral-7b-v0.1"], layers)
    architecture.config["vocab_size"] = vocabulary
    return TrainingSetup(architecture, method, Stack(**settings), gpus)


@contextmanager
def small_rank(job: TrainingSetup) -> Iterator[Rank]:
    """Rank 0 of a job, ready for micro-batches of fake tensors."""
    model = model_setup.build_model(job)
    with (
        model_setup.rank_of(job) as mesh,
        FakeTensorMode(),
        cuda_kernels.on_cuda(model, job.architecture.experts),
        triton_kernels.in_place_of_plain_ops(model, job.stack),
    ):
        model_setup.materialize(model)
        yield Rank(job, model, mesh)
