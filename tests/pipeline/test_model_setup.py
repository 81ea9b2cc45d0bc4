"""Models and ranks are set up according to the stack."""

from __future__ import annotations

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import peft
import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from small_jobs import small_job
from torch import nn
from transformers import Adafactor

from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing import model_setup
from autoconf.pipeline.tracing.first_rank import first_rank
from autoconf.pipeline.tracing.recorder import Recorder

QLORA = {"quantization": "nf4", "mixed_precision": "bf16"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(("method", "settings"), [("qlora", {}), ("lora", QLORA), ("full", QLORA)])
def test_a_method_that_the_quantization_contradicts_is_refused(method, settings):
    quantization = settings.get("quantization", "none")
    with pytest.raises(ValueError, match=f"method '{method}' and quantization '{quantization}' exclude each other"):
        small_job(method, **settings)


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_deepspeed_on_several_gpus_is_not_traced(sharding):
    small_job("full", 1, sharding=sharding)
    with pytest.raises(ValueError, match=f"sharding '{sharding}' on several GPUs is composed, not traced"):
        small_job("full", 2, sharding=sharding)


def test_adafactor_is_refused_where_it_cannot_step():
    with pytest.raises(ValueError, match="optim 'adafactor' and sharding 'fsdp2' exclude each other"):
        small_job("full", gpus=2, optim="adafactor")
    small_job("full", gpus=1, optim="adafactor")
    with first_rank(small_job("full", gpus=2)) as rank:
        for parameter in rank.trainable:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = Adafactor(rank.trainable, lr=1e-3, scale_parameter=False, relative_step=False)
        with pytest.raises(RuntimeError, match=r"mixed .* and DTensor"):
            optimizer.step()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("method", "settings"), [("lora", {}), ("qlora", QLORA)])
def test_adapters_have_the_dtype_of_the_stack_and_the_base_its_own(method, settings, dtype):
    model = model_setup.build_model(small_job(method, adapter_dtype=dtype, **settings))
    trainable = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert trainable == {model_setup.DTYPES[dtype]}
    assert frozen == ({torch.bfloat16, torch.uint8} if method == "qlora" else {torch.bfloat16})


def test_a_model_is_loaded_in_the_dtype_of_the_stack():
    for dtype in ("bfloat16", "float32"):
        model = model_setup.build_model(small_job("full", torch_dtype=dtype))
        assert {p.dtype for p in model.parameters()} == {model_setup.DTYPES[dtype]}
        assert all(p.requires_grad for p in model.parameters())


def _dtypes(model: nn.Module, part: str) -> set[torch.dtype]:
    return {p.dtype for name, p in model.named_parameters() if part in name and "lora" not in name}


@pytest.mark.parametrize(
    ("gpus", "sharding", "norms"),
    [
        (1, "fsdp1", torch.float32),
        (2, "ddp", torch.float32),
        (2, "fsdp1", torch.bfloat16),
        (2, "fsdp2", torch.bfloat16),
    ],
)
def test_norms_become_float32_and_embeddings_stay_bfloat16_unless_gpus_shard(gpus, sharding, norms):
    model = model_setup.build_model(small_job("qlora", gpus, upcast_unquantized="norms", sharding=sharding, **QLORA))
    assert _dtypes(model, "norm") == {norms}
    assert _dtypes(model, "embed_tokens") == _dtypes(model, "lm_head") == {torch.bfloat16}


def test_without_the_upcast_norms_stay_as_loaded():
    assert _dtypes(model_setup.build_model(small_job("qlora", **QLORA)), "norm") == {torch.bfloat16}


@pytest.mark.parametrize(
    ("checkpointing", "with_gradients"),
    [
        ("none", [True]),
        ("reentrant", [False, True]),  # a pass that records nothing, then another in the backward
        ("non-reentrant", [True, True]),
    ],
)
@pytest.mark.parametrize(
    ("method", "settings"), [("full", {}), ("lora", {}), ("qlora", {**QLORA, "upcast_unquantized": "norms"})]
)
def test_layers_run_once_or_are_recomputed_as_the_stack_says(method, settings, checkpointing, with_gradients):
    passes = []
    with first_rank(small_job(method, gradient_checkpointing=checkpointing, **settings)) as rank:
        # The last layer's is recomputed whole: its output is what the next op needs.
        rank.layers[-1].self_attn.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
        rank.micro_batch(2, 32, reduce=False)
        assert all(p.grad is not None for p in rank.trainable)
    assert passes == with_gradients


def _adapted(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        ("default", set(architectures()["mistral-7b-v0.1"].lora_targets)),
        ("attention", ATTENTION),
        ("all-linear", ATTENTION | MLP),
        (("up_proj", "v_proj"), {"up_proj", "v_proj"}),
    ],
)
@pytest.mark.parametrize(("method", "settings"), [("lora", {}), ("qlora", QLORA)])
def test_adapters_are_where_the_stack_puts_them(method, settings, targets, adapted):
    model = model_setup.build_model(small_job(method, lora_targets=targets, lora_r=8, lora_dropout=0.1, **settings))
    assert _adapted(model) == adapted
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert {layer.r["default"] for layer in layers} == {8}
    assert {layer.lora_dropout["default"].p for layer in layers} == {0.1}


ONE_OF_EACH_TYPE = {a.config["model_type"]: a.name for a in architectures().values()}


@pytest.mark.parametrize("name", ONE_OF_EACH_TYPE.values(), ids=ONE_OF_EACH_TYPE)
def test_attention_means_every_linear_layer_of_attention_and_no_other(name):
    architecture = architectures()[name]
    job = model_setup.TrainingSetup(architecture, "lora", Stack(lora_targets="attention"))
    model = model_setup.build_model(job, layers=list(dict.fromkeys(architecture.kinds)))
    own = {path: m for path, m in model.get_base_model().named_modules() if ".lora_" not in path}
    adapted = {path for path, m in own.items() if isinstance(m, peft.tuners.lora.LoraLayer)}
    linear = {path.removesuffix(".base_layer") for path, m in own.items() if type(m).__name__ in ("Linear", "Conv1D")}
    assert adapted == {path for path in linear if "attn." in path or "attention." in path} != set()


@pytest.mark.parametrize(
    ("method", "gpus", "settings"),
    [
        ("full", 1, {"mixed_precision": "bf16"}),
        ("full", 2, {"sharding": "fsdp2"}),
        ("full", 2, {"sharding": "fsdp2", "mixed_precision": "bf16"}),
        ("lora", 2, {"sharding": "fsdp1", "mixed_precision": "bf16"}),
        ("lora", 2, {"sharding": "fsdp1", "mixed_precision": "bf16", "shard_adapters": False}),
        ("lora", 2, {"sharding": "ddp", "mixed_precision": "bf16"}),
        ("qlora", 2, {"sharding": "fsdp1", **QLORA}),
        ("qlora", 2, {"sharding": "fsdp2", **QLORA}),
    ],
)
def test_trainable_shapes_are_those_of_the_parameters_of_a_rank(method, gpus, settings):
    job = small_job(method, gpus, **settings)
    expected = model_setup.trainable_shapes(job)
    with first_rank(job) as rank:
        if settings.get("sharding") == "fsdp1" and settings.get("shard_adapters", True):
            assert {p.dim() for p in rank.trainable} == {len(shape.dimensions) for shape in expected} == {1}
        else:
            assert [tuple(p.shape) for p in rank.trainable] == [shape.dimensions for shape in expected]
        assert [p.itemsize for p in rank.trainable] == [shape.itemsize for shape in expected]


@pytest.mark.parametrize(
    ("method", "gpus", "settings", "itemsize"),
    [
        ("full", 1, {"mixed_precision": "bf16"}, 2),  # autocast only
        ("full", 2, {"mixed_precision": "no"}, 2),
        ("full", 2, {"mixed_precision": "bf16"}, 4),
        ("full", 2, {"mixed_precision": "bf16", "sharding": "fsdp1"}, 4),
        ("full", 2, {"mixed_precision": "bf16", "sharding": "ddp"}, 2),
        ("lora", 2, {"mixed_precision": "bf16", "sharding": "fsdp1", "shard_adapters": False}, 2),
        ("qlora", 2, {**QLORA, "sharding": "fsdp1"}, 4),
        ("qlora", 2, {**QLORA, "sharding": "fsdp2"}, 2),
    ],
)
def test_sharded_mixed_precision_trains_float32(method, gpus, settings, itemsize):
    assert {shape.itemsize for shape in model_setup.trainable_shapes(small_job(method, gpus, **settings))} == {itemsize}


@pytest.mark.parametrize(
    ("name", "large"),
    [
        ("llama3.1-8b", [True, False]),  # embeddings, and a head of their shape
        ("granite-3.1-2b", [True]),  # tied
        ("santacoder-1.1b", [True]),
    ],
)
def test_embeddings_are_recognized_including_a_tied_head(name, large):
    architecture = architectures()[name]
    shapes = model_setup.trainable_shapes(model_setup.TrainingSetup(architecture, "full", Stack()))
    vocabulary = architecture.config["vocab_size"]
    assert [shape.embedding for shape in shapes if vocabulary in shape.dimensions] == large


def test_only_adapters_that_fsdp_ignores_are_whole_on_every_gpu():
    sizes = {}
    for shard_adapters in (True, False):
        job = small_job("lora", 2, sharding="fsdp1", shard_adapters=shard_adapters)
        with first_rank(job) as rank:
            parameters = list(rank.model.parameters())
            sizes[shard_adapters] = [
                sum(p.numel() for p in parameters if p.requires_grad == trainable) for trainable in (True, False)
            ]
    whole = sum(shape.elements for shape in model_setup.trainable_shapes(small_job("lora")))
    assert sizes[False][0] == whole
    assert sizes[True][0] == pytest.approx(whole / 2, rel=0.01)
    assert sizes[True][1] == sizes[False][1]


def _resident_bytes(job: model_setup.TrainingSetup) -> int:
    with first_rank(job) as rank:
        recorder = Recorder()
        for tensor in rank.resident():
            recorder.see(tensor)
        return recorder.live


@pytest.mark.parametrize(("method", "settings"), [("lora", {}), ("full", {}), ("qlora", QLORA)])
def test_replicas_hold_everything_and_a_bucket_for_every_gradient(method, settings):
    job = small_job(method, 2, sharding="ddp", **settings)
    gradients = sum(shape.elements * shape.itemsize for shape in model_setup.trainable_shapes(job))
    assert _resident_bytes(job) - _resident_bytes(small_job(method, 1, **settings)) == gradients
    more_gpus = small_job(method, 8, sharding="ddp", **settings)
    assert _resident_bytes(more_gpus) == _resident_bytes(job)


def test_the_real_wrapper_has_buckets_as_large_as_all_gradients(tmp_path):
    """In addition to the gradients, unless these are views of the buckets, which accelerate does not enable."""
    options = DistributedDataParallelKwargs().to_kwargs()
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8))
    model[0].requires_grad_(False)
    everything = sum(p.nbytes for p in model.parameters())
    trainable = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    recorder = Recorder()
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        with recorder:
            replica = nn.parallel.DistributedDataParallel(model, **options)
            assert recorder.live == everything + trainable
            replica(torch.ones(1, 64)).sum().backward()
            replica.zero_grad()
            replica(torch.ones(1, 64)).sum().backward()  # which makes new buckets
            # A scalar or two may still lie with the thread that reduces.
            assert 0 <= recorder.live - everything - 2 * trainable < 64
    finally:
        dist.destroy_process_group()
