"""Activation offloading as TRL runs it, and checkpoints on the host against traces of it."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch", reason="versions are made with the extra [build], installed on Python 3.11")

from torch import nn
from torch.utils.checkpoint import checkpoint

from autoconf.jobs.stack import Stack
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.model_setup import TrainingSetup
from autoconf.pipeline.tracing.offloading import MAX_FWD_STASH_SIZE, OffloadActivations, OnHost, offloading
from autoconf.pipeline.validation.offloaded import jobs
from autoconf.pipeline.validation.whole_jobs import compared
from autoconf.predictor.registry import MODELS

BYTES = 4 * 32 * 32


def activation(rows: int = 32) -> torch.Tensor:
    return torch.ones(rows, 32)


def test_the_newest_five_tensors_of_a_forward_pass_are_on_the_gpu():
    hooks = OffloadActivations()
    for number in range(1, 9):
        hooks.pack_tensor(activation())
        assert list(hooks.fwd_stash) == list(range(max(1, number - MAX_FWD_STASH_SIZE + 1), number + 1))
    assert all(isinstance(saved, OnHost) for saved in hooks.tracker.values())


def test_small_tensors_parameters_and_known_storages_stay():
    hooks, moved = OffloadActivations(), activation()
    assert moved.nbytes == BYTES
    for tensor, stays in (
        (moved, False), (moved.T, True), (activation(7), True), (nn.Parameter(activation()), True),
        (nn.Buffer(activation()), True), (activation(8), False),
    ):  # fmt: skip
        assert (hooks.tracker[hooks.pack_tensor(tensor)] is tensor) == stays


def test_a_tensor_that_left_the_stash_may_be_moved_again():
    hooks, first = OffloadActivations(), activation()
    for tensor in (first, *(activation() for _ in range(MAX_FWD_STASH_SIZE))):
        hooks.pack_tensor(tensor)
    assert isinstance(hooks.tracker[hooks.pack_tensor(first)], OnHost)


def test_a_backward_pass_brings_one_input_back_while_that_of_the_next_layer_is_used():
    layers, head = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(9)], nn.Linear(32, 32)
    back: list[list[int]] = []
    with offloading(head) as hooks:
        hidden = activation().requires_grad_()
        for layer in layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False)
            hidden.register_hook(lambda _: back.append(sorted([*hooks.fwd_stash, *hooks.bwd_tensor_stash])))
        head(hidden).sum().backward()
        assert back[0] == [5, 6, 7, 8, 9]  # before the backward pass of the last layer
        assert back[1:] == [[], [8], [7], [6], [5], [4], [3], [2]]
        assert not hooks.tracker and not hooks.bwd_tensor_stash
    assert hidden.grad_fn is not None


def test_what_the_head_saves_stays():
    head = nn.Linear(32, 32)
    with offloading(head) as hooks:
        output = head(activation().requires_grad_())
        assert not hooks.tracker
        _ = output.exp()
        assert len(hooks.tracker) == 1


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_composed_peak_is_a_bound_of_the_traced_one(gpus):
    stack = Stack(gradient_checkpointing="offloaded", gradient_accumulation=False, loss="chunked")
    job = TrainingSetup(architectures()["pythia-160m"], "lora", stack, gpus)
    difference = compared(ModelsTable.read(MODELS / "3.0.0"), job, 4_078).difference_percent
    assert -0.05 <= difference <= 5


def test_the_jobs_that_are_compared_have_every_method_in_every_place():
    drawn = list(jobs())
    assert {job.stack.gradient_checkpointing for job in drawn} == {"offloaded"}
    places = {(job.method, job.gpus > 1 and job.stack.sharding) for job in drawn}
    assert places == set(itertools.product(("full", "lora", "qlora"), (False, "fsdp2", "ddp", "fsdp1")))
