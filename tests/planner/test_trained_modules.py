"""Jobs that train embeddings or the head beside adapters."""

from __future__ import annotations

import pandas as pd
import pytest

from autoconf import Workload, estimate, recommend

JOB = {
    "model_name": "qwen2.5-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 4096,
    "per_device_train_batch_size": 2, "model_version": "3.0.0",
}  # fmt: skip
VALUES = ("none", "embeddings", "head", "embeddings_and_head")


def ask(gpus: int = 1, **fields):
    return estimate(Workload.parse(**{**JOB, **fields}), gpus)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp1", "fsdp2"])
@pytest.mark.parametrize("stack", ["reference", "trl", "llama-factory"])
@pytest.mark.parametrize("model", ["qwen2.5-1.5b", "qwen2.5-7b"])  # with tied and with untied embeddings
def test_more_trained_modules_never_need_less(method, sharding, stack, model):
    for gpus, checkpointing in ((1, "none"), (2, "reentrant"), (8, "non-reentrant")):
        fields = {"method": method, "sharding": sharding, "stack": stack, "model_name": model}
        none, embeddings, head, both = (
            ask(gpus, **fields, gradient_checkpointing=checkpointing, trained_modules=value).needed_memory_gib
            for value in VALUES
        )
        assert none <= embeddings <= both and none <= head <= both
        assert none < both


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("model", ["qwen2.5-1.5b", "qwen2.5-7b"])
def test_more_trained_modules_never_need_less_under_deepspeed(sharding, model):
    for gpus, steps in ((2, 4), (8, 1)):
        fields = {"sharding": sharding, "model_name": model, "mixed_precision": "bf16"}
        none, embeddings, head, both = (
            ask(gpus, **fields, gradient_accumulation_steps=steps, trained_modules=value).needed_memory_gib
            for value in VALUES
        )
        assert none < embeddings < both and none < head < both


def test_each_copy_has_weights_a_gradient_and_states():
    copy = 152_064 * 3584 * 2 / 2**30  # vocabulary x hidden size, in bfloat16
    none, both = (ask(trained_modules=value, optim="adamw_torch_fused") for value in ("none", "embeddings_and_head"))
    assert both.weights_gib - none.weights_gib == pytest.approx(2 * copy, abs=0.01)
    assert both.optimizer_gib - none.optimizer_gib == pytest.approx(4 * copy, abs=0.01)
    assert both.gradients_gib - none.gradients_gib >= 2 * copy - 0.01


def test_an_answer_says_that_they_are_copies():
    assert any("are copies, as PEFT makes them" in note for note in ask(trained_modules="head").notes)
    assert not any("are copies" in note for note in ask(trained_modules="none").notes)


@pytest.mark.parametrize("written", [["embed_tokens", "lm_head"], "lm_head,model.embed_tokens", "Embeddings and head"])
def test_modules_may_be_named_as_in_peft(written):
    assert Workload.parse(**JOB, trained_modules=written).trained_modules == "embeddings_and_head"
    assert Workload.parse(**JOB, trained_modules=[]).trained_modules == "none"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["lm_head", "norm"], "got norm"), ("score", "must be none, embeddings, head or embeddings_and_head"),
        (5, "must be none, embeddings, head or embeddings_and_head"),
    ],
)  # fmt: skip
def test_other_modules_are_refused(written, said):
    with pytest.raises(ValueError, match=f"trained_modules: .*{said}"):
        Workload.parse(**JOB, trained_modules=written)


def test_earlier_versions_refuse_them_by_name():
    found = recommend(Workload.parse(**{**JOB, "model_version": "2.0.0"}, trained_modules="head"))
    assert found.reason == (
        "trained_modules 'head' is not in the domain of version 2.0.0, which has none; it is known from version 3.0.0"
    )
    job = {**JOB, "model_name": "llama-7b", "model_version": "1.1.0"}
    first = recommend(Workload.parse(**job, trained_modules="head"))
    assert first.outcome == "outside_domain" and "trained_modules" in first.reason


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sharding": "zero2", "offload": "optimizer", "mixed_precision": "bf16"}, "offload 'optimizer'"),
        ({"sharding": "fsdp2", "offload": "optimizer_and_parameters"}, "offload 'optimizer_and_parameters'"),
        ({"sharding": "shard_grad_op"}, "fsdp_strategy 'shard_grad_op'"), ({"objective": "dpo"}, "objective 'dpo'"),
        ({"method": "qlora", "quantization": "int8", "sharding": "ddp"}, "quantization 'int8'"),
    ],
)  # fmt: skip
def test_what_was_not_compared_is_refused_by_name(fields, named):
    found = recommend(Workload.parse(**{**JOB, **fields, "per_device_train_batch_size": 64}, trained_modules="head"))
    assert not found.can_recommend
    assert f"trained_modules 'head' with {named}" in found.reason


def test_full_fine_tuning_trains_them_anyway():
    with pytest.raises(ValueError, match="method 'full' and trained_modules 'head' exclude each other"):
        Workload.parse(**{**JOB, "method": "full"}, trained_modules="head")
    assert Workload.parse(**{**JOB, "method": "full"}, trained_modules="none").trained_modules == "none"


def test_a_table_may_have_them():
    table = pd.DataFrame([{**JOB, "trained_modules": value} for value in ("head", ["lm_head"], None, "lm_haed")])
    assert recommend(table)["outcome"].tolist() == ["ok", "ok", "ok", "bad_value"]
