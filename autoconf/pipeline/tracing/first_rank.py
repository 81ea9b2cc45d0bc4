"""The first GPU's part of a job, on fake tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from torch._subclasses.fake_tensor import FakeTensorMode

from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing.model_setup import Rank, TrainingSetup, build_model, materialize, rank_of


@contextmanager
def first_rank(job: TrainingSetup, layers: int | Sequence[str] | None = None, *, real: bool = False) -> Iterator[Rank]:
    """Build the model of a job, and run as on its first GPU.

    Args:
        job: what to train, how, and on how many GPUs.
        layers: as ``build_model`` has them.
        real: with real tensors on the CPU; a job on several GPUs then needs a process group, which the caller's process
            has joined.

    Yields:
        The job's part of that GPU, ready for micro-batches.
    """
    model = build_model(job, layers)
    with (
        rank_of(job) as mesh,
        nullcontext() if real else FakeTensorMode(),
        cuda_kernels.on_cuda(model, job.architecture.experts),
        triton_kernels.in_place_of_plain_ops(model, job.stack),
    ):
        materialize(model)
        yield Rank(job, model, mesh)
