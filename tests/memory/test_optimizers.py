"""The bytes of optimizers, compared with their own code on fake tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import get_args

import pytest

for package in ("torch", "transformers", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import bitsandbytes
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.optimization import Adafactor
from transformers.training_args import OptimizerNames

from autoconf.jobs.job import Workload
from autoconf.jobs.stack import Optim
from autoconf.memory.optimizers import OptimizerBytes, Shape, optimizer_bytes
from autoconf.pipeline.tracing.recorder import Recorder

# Matrices, a vector, and a large parameter after another: Adafactor steps one by one.
SHAPES = [(700, 400), (300,), (400, 700), (500, 600), (7, 60, 50)]
# With the Trainer's arguments.
MAKERS: dict[Optim, Callable] = {
    "adamw_torch": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "adamw_torch_fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "adafactor": lambda parameters: Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, foreach=True),
}


def traced(make: Callable, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> OptimizerBytes:
    """Bytes held after a first step, and the peak that a second step adds."""
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes]
        optimizer = make(parameters)
        recorder = Recorder()
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            recorder.see(parameter)
            recorder.see(parameter.grad)
        resident = recorder.live
        with recorder:
            optimizer.step()
            with_states = recorder.live
            recorder.changes.clear()
            optimizer.step()
        peak = max((change.live for change in recorder.changes), default=with_states)
    return OptimizerBytes(with_states - resident, peak - with_states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shapes", [SHAPES, [(900, 800)], [(5000,), (4000,)]])
@pytest.mark.parametrize("optim", MAKERS)
def test_the_bytes_of_an_optimizer_are_those_of_its_own_code(optim, shapes, dtype):
    predicted = optimizer_bytes(optim, [Shape(shape, dtype.itemsize) for shape in shapes])
    states, step = traced(MAKERS[optim], shapes, dtype)
    # Scalars such as the step count, and Adafactor's temporary rows and columns, are excluded.
    assert predicted.states == pytest.approx(states, abs=4 * len(shapes) + 4)
    assert predicted.step == pytest.approx(step, rel=0.005, abs=4)


@pytest.mark.parametrize("optim", get_args(Optim))
def test_consecutive_parameters_of_one_shape_count_as_often_as_there_are(optim):
    counts = [1, 2, 1, 3, 1]
    each = [Shape(shape, 2) for shape, count in zip(SHAPES, counts, strict=True) for _ in range(count)]
    assert optimizer_bytes(optim, map(Shape, SHAPES, itertools.repeat(2)), counts) == optimizer_bytes(optim, each)


def eight_bit_states(parameters: list[torch.nn.Parameter], embedding: torch.nn.Module | None = None) -> list[dict]:
    """The tensors of bitsandbytes' states for each parameter, without shared tables."""
    optimizer = bitsandbytes.optim.AdamW(parameters, optim_bits=8)
    if embedding is not None:  # as in the Trainer's create_optimizer
        manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
        manager.register_module_override(embedding, "weight", {"optim_bits": 32})
        optimizer.check_overrides()
    for index, parameter in enumerate(parameters):
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    shared = ("qmap1", "qmap2")
    states = [optimizer.state[parameter] for parameter in parameters]
    return [{k: t for k, t in state.items() if torch.is_tensor(t) and k not in shared} for state in states]


@pytest.mark.parametrize("shape", [(63, 65), (64, 64), (400, 256), (1000, 1024)])
def test_8_bit_states_are_those_of_bitsandbytes(shape):
    (state,) = eight_bit_states([torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))])
    predicted = optimizer_bytes("adamw_bnb_8bit", [Shape(shape, 2)])
    assert predicted.states == pytest.approx(sum(t.nbytes for t in state.values()), abs=8)


@pytest.mark.parametrize(("shape", "leaves"), [((999, 100), False), ((1000, 100), True)])
def test_large_8_bit_states_are_paged_out_and_their_maxima_are_not(shape, leaves):
    # Which buffers are paged is read in Optimizer8bit.get_state_buffer: managed memory needs a GPU.
    (state,) = eight_bit_states([torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))])
    on_gpu = sum(t.nbytes for name, t in state.items() if not (leaves and name in ("state1", "state2")))
    predicted = optimizer_bytes("paged_adamw_8bit", [Shape(shape, 2)])
    assert predicted.states == pytest.approx(on_gpu, abs=8)


def test_an_embedding_keeps_32_bit_states_as_the_trainer_asks():
    embedding = torch.nn.Embedding(1000, 64, dtype=torch.bfloat16)
    linear = torch.nn.Linear(1000, 64, bias=False, dtype=torch.bfloat16)
    states = eight_bit_states([embedding.weight, linear.weight], embedding)
    held = sum(t.nbytes for state in states for t in state.values())
    shapes = [Shape((1000, 64), 2, embedding=True), Shape((64, 1000), 2)]
    assert optimizer_bytes("adamw_bnb_8bit", shapes).states == pytest.approx(held, abs=8)
    large = [Shape((100_000, 64), 2, embedding=True)]
    assert optimizer_bytes("paged_adamw_8bit", large).states == 0  # paged whole: such states have no maxima


# The classes and arguments of transformers/trainer_optimizer.py.
OF_BITSANDBYTES: dict[Optim, tuple[Callable, int, bool]] = {
    "adamw_bnb_8bit": (bitsandbytes.optim.AdamW, 8, False),
    "adamw_8bit": (bitsandbytes.optim.AdamW, 8, False),
    "paged_adamw_8bit": (bitsandbytes.optim.AdamW, 8, True),
    "paged_adamw_32bit": (bitsandbytes.optim.AdamW, 32, True),
    "lion_8bit": (bitsandbytes.optim.Lion, 8, False),
    "lion_32bit": (bitsandbytes.optim.Lion, 32, False),
    "paged_lion_8bit": (bitsandbytes.optim.Lion, 8, True),
    "paged_lion_32bit": (bitsandbytes.optim.Lion, 32, True),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(63, 65), (64, 64), (400, 200), (999, 100), (1000, 100)])
@pytest.mark.parametrize("optim", OF_BITSANDBYTES)
def test_states_of_bitsandbytes_are_those_of_its_own_code(optim, shape, dtype):
    make, bits, paged = OF_BITSANDBYTES[optim]
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # no overrides of other tests
    optimizer = make([parameter], optim_bits=bits)
    optimizer.init_state(optimizer.param_groups[0], parameter, 0, 0)
    moved = ("state1", "state2") if paged and parameter.numel() >= 100_000 else ()
    tensors = {name: held for name, held in optimizer.state[parameter].items() if torch.is_tensor(held)}
    held = sum(t.nbytes for name, t in tensors.items() if name not in ("qmap1", "qmap2", *moved))
    predicted = optimizer_bytes(optim, [Shape(shape, dtype.itemsize)])
    assert predicted.states == pytest.approx(held, abs=8) and predicted.step == 0


def test_every_optimizer_is_compared_with_its_own_code():
    assert {*MAKERS, *OF_BITSANDBYTES} == {*get_args(Optim)}


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_every_optimizer_of_transformers_is_known_or_refused_by_name(name):
    job = {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": 512, "batch_size": 8}
    if name in get_args(Optim):
        assert Workload.parse(**job, optim=name).training_stack().optim == name
    else:
        with pytest.raises(ValueError, match=f"optim: must be adamw_torch, .* got '{name}'"):
            Workload.parse(**job, optim=name)
