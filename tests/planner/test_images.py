"""Jobs with images: a model with a vision tower needs ``image_tokens``, and no other model takes them."""

from __future__ import annotations

import pandas as pd
import pytest

import autoconf
from autoconf import Job, Workload

JOB = {
    "model_name": "Qwen/Qwen2.5-VL-7B-Instruct", "method": "lora", "gpu_model": "NVIDIA-A100-SXM4-80GB",
    "tokens_per_sample": 4096, "per_device_train_batch_size": 4, "sharding": "ddp",
}  # fmt: skip


def _answer(**fields):
    return autoconf.recommend(Workload(**{**JOB, **fields}))


def test_a_job_with_images_is_answered_with_a_note_on_the_tower():
    found = _answer(image_tokens=1024)
    assert (found.can_recommend, found.gpus, found.workers) == (1, 1, 1)
    assert any("the vision tower of qwen2.5-vl-7b counts as frozen" in note for note in found.notes)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "qwen2.5-vl-7b has a vision tower: give image_tokens, the tokens of each sample that are images"),
        ({"image_tokens": 4097}, "image_tokens 4097 is more than tokens_per_sample 4096, which includes images"),
        ({"image_tokens": 9, "model_name": "qwen2.5-7b"}, "but qwen2.5-7b is counted without a vision tower"),
        (
            {"image_tokens": 9, "model_version": "2.0.0"},
            "it is a vision-language model whose vision tower is not counted",
        ),
        ({"image_tokens": 9, "lora_targets": "all-linear"}, "PEFT finds all-linear in the vision tower too"),
        ({"image_tokens": 9, "lora_targets": "q_proj,up_proj"}, "PEFT finds up_proj in the vision tower too"),
        ({"image_tokens": 9, "sharding": "fsdp2", "method": "full"}, "only LoRA was compared with a traced"),
        ({"image_tokens": 9, "sharding": "zero2"}, "what DeepSpeed holds of a vision tower is not counted"),
        ({"image_tokens": 9, "sharding": "shard_grad_op"}, "this was not compared with a traced vision-language model"),
        ({"image_tokens": 9, "objective": "dpo"}, "this was not compared with a traced vision-language model"),
    ],
)
def test_other_jobs_are_refused_with_the_way_out(fields, reason):
    found = _answer(**fields)
    assert found.outcome == "outside_domain" and reason in found.reason


def test_llama_factory_adapts_the_language_model_alone():
    found = _answer(image_tokens=1024, stack="llama-factory", sharding=None)
    assert found.can_recommend == 1


@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_image_tokens_must_be_a_whole_number(value):
    with pytest.raises(ValueError, match="image_tokens"):
        Workload(**JOB, image_tokens=value)


def test_tables_answer_as_single_jobs():
    rows = [{**JOB, "image_tokens": images} for images in (256, None, 4096, 5000)]
    rows.append({**JOB, "model_name": "qwen2.5-7b", "image_tokens": None})
    answers = autoconf.recommend(pd.DataFrame(rows).astype(object))
    single = [_answer(**row) for row in rows]
    assert answers["outcome"].tolist() == [one.outcome for one in single]
    assert answers["gpus"].fillna(0).tolist() == [one.gpus or 0 for one in single]


def test_more_images_need_more_memory_and_allow_a_smaller_batch():
    peaks = [
        autoconf.estimate(Workload(**JOB, image_tokens=images), number_gpus=1).peak_memory_gib
        for images in (1, 1024, 4096)
    ]
    assert peaks == sorted(peaks) and len({*peaks}) == 3
    fields = {name: value for name, value in JOB.items() if name != "per_device_train_batch_size"}
    few, many = (autoconf.largest_batch(Job(**fields, image_tokens=n), number_gpus=1).batch_size for n in (1, 4096))
    assert many < few


def test_the_longest_sample_and_the_speed_are_not_known_with_images():
    fields = {name: value for name, value in JOB.items() if name != "tokens_per_sample"}
    with pytest.raises(ValueError, match="image_tokens: is a part of tokens_per_sample, which is the output"):
        autoconf.largest_sample(Job(**fields, image_tokens=9), number_gpus=1)
    reason = autoconf.throughput(Workload(**JOB, image_tokens=9), number_gpus=1).reason
    assert reason == "throughput is not known for qwen2.5-vl-7b: the time of its vision tower is not counted"
