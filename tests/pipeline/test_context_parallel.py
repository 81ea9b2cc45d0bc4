"""Tests of context parallelism: what PyTorch's ring attention makes on each GPU, on fake tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="versions are made with the extra [build], installed on Python 3.11")

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.kernels import cuda, ring
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.recorder import Recorder, SizeChange
from autoconf.pipeline.validation.context_parallel import TOKENS_OF_A_GPU, Shared, composed
from autoconf.predictor.registry import MODELS

BATCH, TOKENS, HEADS, SHARED, WIDTH = 2, 48, 8, 2, 16


def made(rank: int, size: int) -> list[SizeChange]:
    """What attention in bfloat16, forward and backward, makes on a rank of ``size`` that share samples."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    try:
        with FakeTensorMode(), ring.context_parallel(dist.group.WORLD), Recorder() as recorder:
            query, key, value = (
                torch.empty(BATCH, TOKENS, heads, WIDTH, dtype=torch.bfloat16, requires_grad=True)
                for heads in (HEADS, SHARED, SHARED)
            )
            out = cuda.flash_attention(query, key, value)
            assert out.shape == query.shape
            out.backward(torch.empty_like(out))
            for tensor in (query, key, value):
                assert tensor.grad is not None and tensor.grad.shape == tensor.shape
        return recorder.changes
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2), (0, 4), (3, 4)])
def test_keys_and_values_of_a_whole_sample_are_gathered_in_both_passes(rank: int, size: int) -> None:
    keys_and_values = 2 * 2 * BATCH * TOKENS * SHARED * WIDTH
    changes = made(rank, size)
    gathered = [change.nbytes for change in changes if "all_gather" in change.op and change.nbytes > 0]
    assert gathered == [size * keys_and_values] * 2
    # Their gradients go round in float32.
    passed = [change.nbytes for change in changes if "all_to_all" in change.op and change.nbytes > 0]
    assert passed == [2 * keys_and_values] * size
    assert not [change for change in changes if "wait_tensor" in change.op]


def test_other_models_keep_their_attention() -> None:
    before = cuda.flash_attention
    made(0, 2)
    assert cuda.flash_attention is before


def test_each_further_gpu_of_a_sample_adds_its_keys_and_values_to_the_composed_peak() -> None:
    architecture = architectures()["pythia-160m"]
    stack = Stack(loss="chunked", gradient_accumulation=False)
    job, table = TrainingSetup(architecture, "full", stack, gpus=8), ModelsTable.read(MODELS / "3.0.0")
    two, four = (composed(table, Shared(job, size), rank=0) for size in (2, 4))
    assert four - two == pytest.approx(2 * TOKENS_OF_A_GPU * 2 * 2 * architecture.config["hidden_size"], rel=1e-3)
