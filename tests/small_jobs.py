"""Jobs of a model 128 wide, and one GPU's part of them on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.build import fused, kernels, rank_truth, training
from autoconf.build.architectures import architectures
from autoconf.build.training import Job, Method, Rank
from autoconf.stack import Stack


def small_job(method: Method, gpus: int = 1, layers: int = 2, vocabulary: int = 64, **settings) -> Job:
    """Mistral, tuned under a stack with these settings."""
    architecture = rank_truth.small(architectures()["mistral-7b-v0.1"], layers)
    architecture.config["vocab_size"] = vocabulary
    return Job(architecture, method, Stack(**settings), gpus)


@contextmanager
def small_rank(job: Job) -> Iterator[Rank]:
    """Rank 0 of a job, ready for micro-batches of fake tensors."""
    model = training.build_model(job)
    with (
        training.rank_of(job) as mesh,
        FakeTensorMode(),
        kernels.on_cuda(model, job.architecture.experts),
        fused.in_place_of_plain_ops(model, job.stack),
    ):
        training.materialize(model)
        yield Rank(job, model, mesh)
