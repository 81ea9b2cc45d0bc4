"""Jobs whose checkpoints are in the memory of the host."""

from __future__ import annotations

import numpy as np
import pytest

from autoconf import Job, Workload, estimate, largest_batch, recommend
from autoconf.jobs.presets import presets
from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_job
from autoconf.memory.offloaded import SavedInputs
from autoconf.memory.profile import LayerWay
from autoconf.memory.store import ModelsTable
from autoconf.memory.units import Unsupported
from autoconf.predictor import registry

JOB = {
    "model_name": "llama3.1-8b", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB", "tokens_per_sample": 8192,
    "per_device_train_batch_size": 4, "model_version": "3.0.0", "gradient_checkpointing": "offloaded",
}  # fmt: skip
LAYERS, HIDDEN = 32, 4096
answered = pytest.mark.skipif(
    "offloaded" not in registry.load("3.0.0").domain.gradient_checkpointing,
    reason="version 3.0.0 has to be made again to know the value",
)


@pytest.fixture(scope="module")
def table() -> ModelsTable:
    return ModelsTable.read(registry.MODELS / "3.0.0")


def peak(table: ModelsTable, tokens: int, gpus: int = 1, model: str = "llama3.1-8b", method: str = "lora", **settings):
    stack = Stack(quantization="nf4" if method == "qlora" else "none", **settings)
    job = gpu_job(table, model, method, stack, several=gpus > 1)
    return float(job.memory.peak_bytes(np.array([gpus]), np.array([tokens]))[0])


def saved(table: ModelsTable, tokens: int, **settings) -> float:
    """How many inputs of layers a job saves by offloading them, in bfloat16."""
    less, more = (
        peak(table, tokens, gradient_checkpointing=where, **settings) for where in ("offloaded", "non-reentrant")
    )
    return (more - less) / (2 * HIDDEN * tokens)


@pytest.mark.parametrize("model", ["llama3.1-8b", "olmo-2-1b", "opt-125m", "gemma-3-1b", "qwen3-30b-a3b"])
def test_the_input_of_a_layer_is_a_hidden_state_in_16_or_32_bits(table, model):
    full = table.trainable(model, "full", "default")
    hidden = next(shape.dimensions[-1] for shape, _ in full.shapes if shape.embedding)
    ways = [way for way in table.ways(model) if isinstance(way, LayerWay) and way.gradient_checkpointing != "none"]
    sizes = {SavedInputs.of(table, model, table.moments(model, way)).per_token / hidden for way in ways}
    assert {round(size, 4) for size in sizes} == {2, 4}


@pytest.mark.parametrize("settings", [{}, {"loss": "chunked"}, {"gpus": 8}, {"gpus": 8, "sharding": "ddp"}])
def test_all_inputs_of_layers_but_five_leave_the_gpu_at_the_peak(table, settings):
    assert saved(table, 32_768, **settings) == pytest.approx(LAYERS - 5)


def test_adapters_never_need_more_with_offloaded_checkpoints(table):
    for model in ("llama3.1-8b", "gemma-3-1b", "pythia-1b", "qwen3-30b-a3b"):
        for method, mixed, gpus, tokens in (
            ("lora", "no", 1, 64),
            ("qlora", "bf16", 2, 4096),
            ("lora", "bf16", 8, 65536),
        ):
            settings = {"model": model, "method": method, "mixed_precision": mixed, "gpus": gpus}
            assert saved(table, tokens, **settings) >= 0


def test_the_host_holds_a_block_for_each_layer_and_what_the_head_keeps(table):
    stack = Stack(gradient_checkpointing="offloaded", loss="chunked")
    job = gpu_job(table, "llama3.1-8b", "lora", stack, several=False)
    inputs = LAYERS * 2 * HIDDEN * 8192
    assert inputs < job.host_bytes(1, 1, 8192) < 1.3 * inputs
    assert job.host_bytes(1, 1, 0) == 0
    assert job.host_bytes(1, 1, 8193) > 1.9 * inputs  # page-locked blocks are powers of two
    assert job.host_bytes(4, 4, 8192) == 4 * job.host_bytes(4, 1, 8192)
    on_gpu = gpu_job(table, "llama3.1-8b", "lora", Stack(loss="chunked"), several=False)
    assert on_gpu.host_bytes(1, 1, 8192) == 0


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("granite-4.0-h-micro", {}, "of granite-4.0-h-micro is not supported: it is known for layers of one kind"),
        ("llama3.1-8b", {"sharding": "zero3", "mixed_precision": "bf16"}, "with sharding 'zero3'"),
        ("llama3.1-8b", {"objective": "dpo"}, "with objective 'dpo'"),
        ("llama3.1-8b", {"lora_layers": (1, 3)}, "with lora_layers (1, 3)"),
    ],
)
def test_what_was_not_compared_is_refused_by_name(table, model, settings, said):
    with pytest.raises(Unsupported) as refused:
        gpu_job(table, model, "lora", Stack(gradient_checkpointing="offloaded", **settings), several=True)
    assert said in str(refused.value)


def test_earlier_versions_refuse_it_by_name():
    found = recommend(Workload(**{**JOB, "model_version": "2.0.0"}))
    assert found.outcome == "outside_domain"
    assert "gradient_checkpointing 'offloaded' is not in the domain of version 2.0.0" in found.reason


@answered
def test_an_answer_says_that_it_is_a_bound_and_what_the_host_holds():
    found = recommend(Workload(**JOB))
    assert any("upper bound from the code of TRL, torchtune and unsloth" in note for note in found.notes)
    assert any("of the host's memory" in note for note in found.notes)
    on_gpu = estimate(Workload(**{**JOB, "gradient_checkpointing": "non-reentrant"}), 1)
    assert estimate(Workload(**JOB), 1).needed_memory_gib < on_gpu.needed_memory_gib
    assert found.host_memory_gib is not None and on_gpu.host_memory_gib == 0


@answered
def test_an_answer_under_an_approximate_stack_says_how_far_it_is():
    job = {**JOB, "stack": "unsloth", "gradient_checkpointing": None}
    assert recommend(Workload(**job)).stack == "unsloth"
    said = [note for note in recommend(Workload(**job)).notes if note.startswith("approximate: within ")]
    assert said == [f"approximate: {presets()['unsloth'].approximate}"]
    assert not any("approximate" in note for note in recommend(Workload(**JOB)).notes)


@answered
def test_a_limit_of_the_host_bounds_the_batch():
    fields = {name: value for name, value in JOB.items() if name != "per_device_train_batch_size"}
    fields["tokens_per_sample"] = 512
    batches = [
        largest_batch(Job(**fields, host_memory_limit_gib=limit), 1).per_device_train_batch_size or 0
        for limit in (1, 4, 16, 1000)
    ]
    assert 0 < batches[0] < batches[1] < batches[2] < batches[3]
    assert batches[-1] == largest_batch(Job(**fields), 1).per_device_train_batch_size
