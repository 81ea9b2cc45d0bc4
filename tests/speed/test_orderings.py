"""Orderings of throughput that hold by construction, over random jobs."""

import itertools
import random

import pytest

from autoconf.jobs.job import choices
from autoconf.jobs.stack import Stack
from autoconf.pipeline.catalog import architectures
from autoconf.speed.estimate import SpeedJob, speeds
from autoconf.speed.features import MONOTONE
from autoconf.speed.gpu_speed import GpuSpeed, gpu_speeds
from autoconf.speed.roofline import times
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
EXACT = 1 - 1e-9  # sums of floating-point numbers


def random_job(chance: random.Random, gpu=None, **layout) -> SpeedJob:
    model = chance.choice(list(architectures()))
    method = chance.choice(["full", "lora", "qlora"])
    sharding = chance.choice(choices("sharding"))
    stack = Stack(
        sharding=sharding,
        offload=chance.choice(OFFLOADS[sharding]),
        gradient_checkpointing=chance.choice(["none", "reentrant", "non-reentrant"]),
        loss=chance.choice(["full", "chunked"]),
        quantization="nf4" if method == "qlora" else "none",
        optim=chance.choice(["adamw_torch", "adamw_torch_fused", "adafactor", "paged_adamw_8bit", "lion_8bit", "sgd"]),
        mixed_precision=chance.choice(["no", "bf16"]),
        torch_dtype=chance.choice(["bfloat16", "float32"]) if method != "qlora" else "bfloat16",
        kernels=chance.choice([(), ("fast_rms_layernorm", "fast_rope_embeddings")]),
    )
    sizes = {
        "samples": chance.choice([1, 2, 3, 8, 32, 500]),
        "tokens_per_sample": chance.choice([1, 64, 512, 2048, 8192, 100_000]),
        "gpus": chance.choice([1, 2, 3, 4, 8, 16]), "steps": chance.choice([1, 4, 64]),
    }  # fmt: skip
    return SpeedJob(
        model, known_shapes(model), method, stack, gpu or chance.choice(list(GPUS)), Layout(**sizes | layout)
    )


def figures(gpu: GpuSpeed) -> tuple[float, ...]:
    return gpu.bfloat16, gpu.float32, gpu.memory, gpu.link_bytes(2), gpu.link_bytes(4), gpu.pcie


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
        return job.layout.gpus * work.tokens / times(work, GPUS[job.gpu_model], job.layout, constants).total

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


@pytest.mark.parametrize(
    "feature", ["tokens", "tokens_per_launch", "tokens_per_expert", "gpus", "link", "memory", "peak"]
)
def test_features_that_physics_orders_may_only_raise_the_speed(feature):
    assert MONOTONE[feature] == 1
