"""Orderings of throughput that hold by construction, over random jobs."""

import itertools
import random

import pytest

from autoconf.jobs.job import choices
from autoconf.jobs.stack import Stack, sharding_parts
from autoconf.pipeline.catalog import architectures
from autoconf.speed.estimate import SpeedJob, speeds
from autoconf.speed.features import MONOTONE
from autoconf.speed.gpu_speed import GpuSpeed, gpu_speeds
from autoconf.speed.roofline import loads, times
from autoconf.speed.shapes import known_shapes
from autoconf.speed.version import load
from autoconf.speed.work import Layout, work_of

GPUS = gpu_speeds()
JOBS = 3_000
_FSDP = ["none", "optimizer_and_parameters"]
OFFLOADS = {
    "ddp": ["none"], "fsdp1": _FSDP, "fsdp2": _FSDP, "zero1": ["none", "optimizer"], "zero2": ["none", "optimizer"],
    "zero3": ["none", "optimizer", "parameters", "optimizer_and_parameters"],
}  # fmt: skip
DRAWN = [
    "gradient_checkpointing", "loss", "optim", "mixed_precision", "torch_dtype", "gradient_sync", "lora_targets",
    "adapter_dtype",
]  # fmt: skip
EXACT = 1 - 1e-9  # sums of floating-point numbers


def random_job(chance: random.Random, gpu=None, **layout) -> SpeedJob:
    model = chance.choice(list(architectures()))
    method = chance.choice(["full", "lora", "qlora"])
    sizes = {
        "samples": chance.choice([1, 2, 3, 8, 32, 500]),
        "tokens_per_sample": chance.choice([1, 64, 512, 2048, 8192, 100_000]),
        "gpus": chance.choice([1, 2, 3, 4, 8, 16]), "steps": chance.choice([1, 4, 64]),
    }  # fmt: skip
    stack = random_stack(chance, method)
    return SpeedJob(
        model, known_shapes(model), method, stack, gpu or chance.choice(list(GPUS)), Layout(**sizes | layout)
    )


def random_stack(chance: random.Random, method: str) -> Stack:
    """A stack of settings that do not exclude each other."""
    while True:
        sharding = chance.choice(choices("sharding"))
        drawn = {field: chance.choice(choices(field)) for field in DRAWN} | {
            "sharding": sharding,
            "offload": chance.choice(OFFLOADS[sharding_parts(sharding)[0]]),
            "quantization": chance.choice(choices("quantization")[1:]) if method == "qlora" else "none",
            "objective": chance.choice(["sft", *choices("objective")]),
            "kernels": chance.choice([(), ("fast_rms_layernorm", "fast_rope_embeddings"), ("fused_lora",)]),
        }
        try:
            return Stack(**drawn)
        except ValueError:
            continue


def figures(gpu: GpuSpeed) -> tuple[float, ...]:
    return gpu.bfloat16, gpu.flops("float16"), gpu.float32, gpu.memory, gpu.link_bytes(2), gpu.link_bytes(4), gpu.pcie


FASTER = [
    (slow, fast)
    for slow, fast in itertools.permutations(GPUS, 2)
    if all(a <= b for a, b in zip(figures(GPUS[slow]), figures(GPUS[fast]), strict=True))
]


def rates(jobs):
    return [speed.tokens_per_second for speed in speeds(load(), jobs)]


def test_a_gpu_with_figures_at_least_as_good_is_never_slower():
    assert len(FASTER) > 40
    chance = random.Random(0)
    pairs = []
    for _ in range(JOBS):
        slow, fast = chance.choice(FASTER)
        job = random_job(chance, slow)
        pairs.append((job, job._replace(gpu_model=fast)))
    slower, faster = rates([a for a, _ in pairs]), rates([b for _, b in pairs])
    assert [pair for pair, a, b in zip(pairs, slower, faster, strict=True) if b < a * EXACT] == []


def test_tokens_per_second_do_not_fall_with_the_batch():
    chance = random.Random(1)
    jobs = []
    for _ in range(JOBS):
        small = random_job(chance)
        more = small.layout.samples + chance.choice([1, 2, 7, 64])
        large = small._replace(layout=small.layout.__class__(**{**vars(small.layout), "samples": more}))
        jobs.append((small, large))
    small, large = rates([a for a, _ in jobs]), rates([b for _, b in jobs])
    assert [pair for pair, a, b in zip(jobs, small, large, strict=True) if b < a * EXACT] == []


def test_more_gpus_cost_no_more_than_the_model_of_the_network_says():
    chance = random.Random(2)
    constants = load().card.constants
    jobs = []
    for _ in range(JOBS):
        gpu = chance.choice([*GPUS])
        # A type with a bridge for two GPUs has another link on more than two.
        few = random_job(chance, gpu, gpus=chance.choice([4, 8] if GPUS[gpu].pair else [1, 2, 4, 8]))
        many = few.layout.gpus * chance.choice([2, 4])
        nodes = -(-many // 8)
        jobs.append(
            (few, few._replace(layout=few.layout.__class__(**{**vars(few.layout), "gpus": many, "nodes": nodes})))
        )

    def physics(job):
        work = work_of(job.shapes, job.method, job.stack, job.layout)
        return job.layout.gpus * work.tokens / times(loads(work, GPUS[job.gpu_model], job.layout), constants).total

    few, many = rates([a for a, _ in jobs]), rates([b for _, b in jobs])
    for (a, b), slower, faster in zip(jobs, few, many, strict=True):
        assert faster / slower >= physics(b) / physics(a) * EXACT


def test_bounds_enclose_the_estimate_and_are_wide_where_nothing_was_measured():
    mistral = known_shapes("mistral-7b-v0.1")
    job = SpeedJob("mistral-7b-v0.1", mistral, "lora", Stack(), "NVIDIA-A100-SXM4-80GB", Layout(8, 2048, 1, steps=4))
    near, far, stack, model = speeds(
        load(),
        [
            job,
            job._replace(gpu_model="NVIDIA-H200"),
            job._replace(stack=Stack(sharding="ddp"), layout=Layout(8, 2048, 4)),
            job._replace(model="llama-7b", shapes=known_shapes("llama-7b")),
        ],
    )
    for one in (near, far, stack, model):
        assert one.low < one.tokens_per_second < one.high
        assert 0 < one.model_flops_utilization < 1
    width = [one.high / one.low for one in (near, model, far)]
    assert width == sorted(width) and width[0] < width[2]
    assert near.notes == ()
    assert far.notes[0].startswith("not measured: NVIDIA-H200,")
    assert stack.notes[0].startswith("not measured: sharding ddp,")
    assert model.notes[0].startswith("not measured: llama-7b,")


def test_offload_is_slower_limits_small_batches_and_was_not_measured():
    def speed(offload, samples):
        stack = Stack(sharding="zero3", offload=offload)
        shapes = known_shapes("mistral-7b-v0.1")
        job = SpeedJob("mistral-7b-v0.1", shapes, "full", stack, "NVIDIA-A100-SXM4-80GB", Layout(samples, 1024, 4))
        return speeds(load(), [job])[0]

    small, large = speed("optimizer_and_parameters", 1), speed("optimizer_and_parameters", 256)
    assert (small.limit, large.limit) == ("offload", "compute")
    assert "offload optimizer_and_parameters" in small.notes[0]
    rates = [speed(offload, 4).tokens_per_second for offload in ("none", "optimizer", "optimizer_and_parameters")]
    assert rates == sorted(rates, reverse=True) and rates[0] > 1.5 * rates[2]


def test_small_models_and_experts_are_limited_by_launches():
    def limit(model, samples):
        shapes = known_shapes(model)
        job = SpeedJob(model, shapes, "full", Stack(), "NVIDIA-H100-80GB-HBM3", Layout(samples, 512, 1))
        return speeds(load(), [job])[0].limit

    assert limit("qwen2.5-0.5b", 1) == limit("granite-3.1-3b-a800m-instruct", 1) == "kernel launches"
    assert limit("mistral-7b-v0.1", 64) == "compute"


def speed_of(model, method, gpu, layout, **settings):
    job = SpeedJob(model, known_shapes(model), method, Stack(**settings), gpu, layout)
    return speeds(load(), [job])[0]


@pytest.mark.parametrize(
    ("limit", "model", "method", "gpu", "layout", "settings"),
    [
        ("compute", "mistral-7b-v0.1", "full", "NVIDIA-A100-SXM4-80GB", Layout(16, 2048, 1), {}),
        ("memory", "llama3.1-70b", "full", "NVIDIA-H100-80GB-HBM3", Layout(1, 64, 1), {"optim": "adamw_torch"}),
        ("network", "mistral-7b-v0.1", "full", "L40S", Layout(1, 512, 8), {"sharding": "fsdp1"}),
        ("kernel launches", "qwen2.5-0.5b", "lora", "NVIDIA-H100-80GB-HBM3", Layout(1, 128, 1), {}),
        (
            "offload", "mistral-7b-v0.1", "full", "NVIDIA-A100-SXM4-80GB", Layout(1, 512, 4),
            {"sharding": "zero3", "offload": "optimizer_and_parameters"},
        ),
    ],
)  # fmt: skip
def test_every_limit_is_reached(limit, model, method, gpu, layout, settings):
    assert speed_of(model, method, gpu, layout, **settings).limit == limit


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "dpo"}, "objective dpo"),
        ({"mixed_precision": "fp16", "torch_dtype": "float16"}, "mixed_precision fp16"),
        ({"gradient_sync": "every"}, "gradient_sync every"),
        ({"sharding": "zero2"}, "sharding zero2"),
        ({"loss": "chunked_nll"}, "loss chunked_nll"),
    ],
)
def test_settings_that_were_not_measured_are_named_and_widen_the_bounds(settings, said):
    where = "mistral-7b-v0.1", "lora", "NVIDIA-A100-SXM4-80GB", Layout(4, 2048, 4, steps=4)
    known, found = speed_of(*where), speed_of(*where, **settings)
    assert known.notes == () and said in found.notes[0]
    assert found.high / found.low > known.high / known.low


def test_objectives_with_more_passes_are_slower():
    where = "mistral-7b-v0.1", "full", "NVIDIA-A100-SXM4-80GB", Layout(4, 2048, 4)
    rates = [speed_of(*where, objective=objective).tokens_per_second for objective in ("kto", "dpo", "orpo", "sft")]
    assert rates == sorted(rates) and len({*rates[:3]}) == 3 and rates[2] == rates[3]
    assert speed_of(*where, objective="reward").tokens_per_second > rates[3]


def test_float16_has_its_own_peak_where_there_is_no_bfloat16():
    where = "qwen2.5-3b", "lora", "Tesla-V100-SXM2-32GB", Layout(4, 1024, 1)
    half = {"mixed_precision": "fp16", "torch_dtype": "float16", "adapter_dtype": "float32"}
    assert speed_of(*where, **half).tokens_per_second > 2 * speed_of(*where).tokens_per_second


@pytest.mark.parametrize(
    "feature", ["tokens", "tokens_per_launch", "tokens_per_expert", "gpus", "link", "memory", "peak"]
)
def test_features_that_physics_orders_may_only_raise_the_speed(feature):
    assert MONOTONE[feature] == 1
