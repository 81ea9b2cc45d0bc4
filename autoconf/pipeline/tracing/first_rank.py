"""The first GPU's part of a job, on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoconf.pipeline.kernels import cuda as cuda_kernels
from autoconf.pipeline.kernels import triton as triton_kernels
from autoconf.pipeline.tracing import vision
from autoconf.pipeline.tracing.model_setup import Rank, TrainingSetup, build_model, materialize
from autoconf.pipeline.tracing.recorder import SAMPLES

# FSDP1 checks that a whole parameter is still there by its address, which is always 0 for fake tensors.
_ALLOCATED = "torch.distributed.fsdp._flat_param._data_ptr_allocated"

Load = Callable[[TrainingSetup, nn.Module, DeviceMesh | None], Rank]


def load_at_once(job: TrainingSetup, model: nn.Module, mesh: DeviceMesh | None, kind: type[Rank] = Rank) -> Rank:
    """Make a model's tensors, and shard it, as a kind of rank."""
    materialize(model)
    rank = kind(job, model, mesh)
    if job.gpus > 1 and not job.shards:
        # torch/csrc/distributed/c10d/reducer.cpp: DDP copies gradients into buckets that it flattened at the start,
        # unless they are views of these (gradient_as_bucket_view), which accelerate's DistributedDataParallelKwargs and
        # the Trainer leave off. DDP itself does not run in a fake process group.
        rank.buckets = [torch.empty_like(parameter) for parameter in rank.trainable]
    return rank


@contextmanager
def first_rank(
    job: TrainingSetup,
    layers: int | Sequence[str] | None = None,
    *,
    real: bool = False,
    load: Load = load_at_once,
) -> Iterator[Rank]:
    """Build the model of a job, and run as on its first GPU.

    Args:
        job: what to train, how, and on how many GPUs.
        layers: as ``build_model`` has them.
        real: with real tensors on the CPU; a job on several GPUs then needs a process group, which the caller's process
            has joined.
        load: makes the tensors of a model on the ``meta`` device, and shards it.

    Yields:
        The job's part of that GPU, ready for micro-batches.
    """
    model = build_model(job, layers)
    with (
        rank_of(job) as mesh,
        nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=load is not load_at_once),  # on meta
        nullcontext() if real else mock.patch(_ALLOCATED, lambda tensor: tensor.untyped_storage().size() > 0),
        cuda_kernels.on_cuda(model, job.architecture.experts),
        triton_kernels.in_place_of_plain_ops(model, job.stack),
        cuda_kernels.unpacking_for_dora() if job.stack.use_dora else nullcontext(),
        vision.of_images(model, SAMPLES, job.image_tokens) if job.image_tokens else nullcontext(),
    ):
        yield load(job, model, mesh)


@contextmanager
def rank_of(job: TrainingSetup) -> Iterator[DeviceMesh | None]:
    """Act as rank 0 of a job whose other ranks and collectives do nothing, or as the existing rank of this process.

    Yields:
        The mesh of the job's GPUs; ``None`` for one GPU.
    """
    if job.gpus == 1:
        yield None
    elif dist.is_initialized():
        yield _mesh(job)
    else:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=job.gpus * job.nodes)
        try:
            yield _mesh(job)
        finally:
            dist.destroy_process_group()


def _mesh(job: TrainingSetup) -> DeviceMesh:
    """All GPUs of a job; if FSDP shards within nodes, nodes and the GPUs of each."""
    if not job.stack.is_hybrid:
        return init_device_mesh("cpu", (job.gpus,))
    return init_device_mesh("cpu", (job.nodes, job.gpus), mesh_dim_names=("replicate", "shard"))
