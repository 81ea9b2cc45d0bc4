"""Memory of TRL's losses: composed figures against those of the losses' own code, and what they imply."""

import csv

import numpy as np
import pytest

from autoconf.jobs.stack import Stack
from autoconf.memory.model import gpu_memory
from autoconf.memory.objectives import _LOSSES, Setup
from autoconf.memory.units import GIB
from autoconf.memory.ways import RULES, layer_way
from autoconf.pipeline.validation.objective_truth import MEASURED
from autoconf.predictor import registry

TABLE = registry.load("3.0.0").memory.table
PAIRS = ("reward", "dpo", "dpo_precomputed", "orpo")
_LOSING = ("llama-factory", "trl")
MODELS = ("llama-7b", "granite-3.1-2b", "gemma-2-9b", "mixtral-8x7b-instruct-v0.1")
MODELS = tuple(name for name in MODELS if name in TABLE.models)


def peak(objective, method="full", *, gpus=1, tokens=4096, model="llama-7b", **settings):
    memory = gpu_memory(TABLE, model, method, Stack(objective=objective, **settings), several=gpus > 1)
    return float(memory.peak_bytes(np.array([gpus]), np.array([tokens]))[0]) / GIB


@pytest.mark.parametrize(
    "row", list(csv.DictReader(MEASURED.open())), ids=lambda row: f"{row['losses']} {row['objective']} {row['logit']}"
)
def test_the_losses_hold_what_their_own_code_held(row):
    if row["objective"] == "reward":  # logits in the dtype of computation and in float32, which no loss keeps
        assert float(row["over"]) == pytest.approx(6, abs=0.5) and float(row["backward"]) < 1
        return
    # LLaMA-Factory makes float32 logits of those in the dtype of computation.
    held = _LOSSES[row["losses"], row["objective"], 4 if row["losses"] == "llama-factory" else int(row["logit"])]
    for moment in ("over", "turn", "backward"):
        measured = float(row[moment])
        # The measured bytes include those of layers, and the logits of 128 tokens at a time in float32.
        assert measured - 1 <= getattr(held, moment) <= measured + 1.01 or (moment == "over" and row["on_cpu_alone"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sharding", ["ddp", "fsdp1", "fsdp2"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reference_model_and_its_logits_are_held_unless_they_are_precomputed(model, sharding, method):
    settings = {"model": model, "method": method, "sharding": sharding, "gpus": 4}
    assert peak("dpo", **settings) >= peak("dpo_precomputed", **settings) >= peak("reward", **settings)
    many = {**settings, "tokens": 131_072}
    assert peak("dpo", **many) > peak("dpo_precomputed", **many) > peak("reward", **many)


def test_a_reference_model_takes_the_bytes_of_its_parameters():
    few = {"tokens": 1, "sharding": "ddp", "gpus": 2}
    parameters = TABLE.trainable("llama-7b", "full", "default").units.trainable
    for dtype, itemsize in (("bfloat16", 2), ("float32", 4)):
        held = peak("dpo", torch_dtype=dtype, **few) - peak("dpo_precomputed", torch_dtype=dtype, **few)
        assert held == pytest.approx(parameters * itemsize / GIB, rel=1e-6)
    assert peak("dpo", "lora", **few) == pytest.approx(peak("dpo_precomputed", "lora", **few), rel=1e-3)


def test_fsdp_shards_a_reference_model_and_fsdp2_gathers_it_whole():
    of = {
        sharding: [peak("dpo", sharding=sharding, gpus=gpus, tokens=64) for gpus in (2, 8)]
        for sharding in ("fsdp1", "fsdp2")
    }
    parameters = TABLE.trainable("llama-7b", "full", "default").units.trainable * 2 / GIB
    assert of["fsdp1"][1] < 0.6 * of["fsdp1"][0]
    assert of["fsdp2"][1] > 2 * parameters


def test_zero_3_alone_shards_a_reference_model():
    def referenced(sharding, gpus):
        settings = {
            "sharding": sharding,
            "gpus": gpus,
            "tokens": 64,
            "mixed_precision": "bf16",
            "torch_dtype": "float32",
        }
        return peak("dpo", **settings) - peak("dpo_precomputed", **settings)

    parameters = TABLE.trainable("llama-7b", "full", "default").units.trainable * 2 / GIB
    for sharding in ("zero1", "zero2"):
        assert referenced(sharding, 8) == pytest.approx(parameters, rel=0.01)
    assert referenced("zero3", 8) == pytest.approx(parameters / 8, rel=0.1)


@pytest.mark.parametrize("objective", PAIRS)
def test_a_sample_of_pairs_has_the_tokens_of_two(objective):
    one, more = (peak(objective, "lora", tokens=tokens) for tokens in (4096, 8192))
    kto, more_kto = (peak("kto", "lora", tokens=tokens) for tokens in (4096, 8192))
    if objective != "reward":  # whose loss has no logits
        assert more - one > 1.2 * (more_kto - kto)


def test_a_reward_model_has_one_score_instead_of_a_head_of_its_own():
    heads = 32_000 * 4096 * 2 / GIB
    few = {"tokens": 1, "gradient_accumulation": True, "optim": "sgd"}
    assert peak("sft", "full", **few) - peak("reward", "full", **few) == pytest.approx(2 * heads, rel=0.3)
    tied = TABLE.trainable("granite-3.1-2b", "full", "default").units.trainable * 2 / GIB
    assert peak("reward", "lora", model="granite-3.1-2b", **few) > tied


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "reward", "grpo"])
def test_losses_over_chunks_are_refused_by_name(objective):
    with pytest.raises(ValueError, match=f"objective '{objective}' and loss 'chunked' exclude each other"):
        Stack(objective=objective, loss="chunked")


def test_the_losses_of_llama_factory_hold_more():
    settings = {"mixed_precision": "bf16", "gpus": 8, "tokens": 4096}
    for sharding in ("ddp", "fsdp2"):
        for objective in ("dpo", "kto"):
            held = [peak(objective, "lora", sharding=sharding, losses=who, **settings) for who in _LOSING]
            assert held[0] > held[1]


def test_llama_factory_shards_a_reference_model_in_units():
    """v0.9.5, src/llamafactory/train/dpo/trainer.py and kto/trainer.py: prepare_fsdp and fsdp2_prepare_model."""
    few = {"mixed_precision": "bf16", "tokens": 1, "torch_dtype": "float32", "losses": "llama-factory"}
    whole = TABLE.trainable("llama-7b", "full", "default").units.trainable * 4 / GIB
    for sharding in ("fsdp1", "fsdp2"):
        for objective, without in (("dpo", "orpo"), ("kto", "sft")):
            more = [
                peak(objective, sharding=sharding, gpus=gpus, **few)
                - peak(without, sharding=sharding, gpus=gpus, **few)
                for gpus in (2, 8)
            ]
            assert more == pytest.approx([whole / 2, whole / 8], rel=0.2)


def test_llama_factorys_reward_model_makes_logits_beside_its_score():
    """v0.9.5, src/llamafactory/train/rm; trl v0.24.0, trl/models/modeling_value_head.py."""
    settings = {"mixed_precision": "bf16", "method": "lora", "gradient_checkpointing": "non-reentrant"}
    few, many = ({**settings, "tokens": tokens} for tokens in (4_096, 131_072))
    more = [peak("reward", losses=who, **many) - peak("reward", losses=who, **few) for who in _LOSING]
    # Two samples of a pair, each logit in bfloat16 and in float32, and then nothing of them.
    assert more[0] - more[1] < 2 * (131_072 - 4_096) * 32_000 * 6 / GIB
    assert more[0] > more[1]
    drops = [
        layer_way(Stack(objective=objective, losses=who, lora_dropout=0.1), "lora", several=False, rules=RULES).dropout
        for objective in ("reward", "kto")
        for who in _LOSING
    ]
    assert drops == [True, False, False, False]  # TRL disables dropout, and so does LLaMA-Factory's KTO
    with pytest.raises(ValueError, match="objective 'reward' and gradient_checkpointing 'none' exclude each other"):
        Stack(objective="reward", losses="llama-factory", gradient_checkpointing="none")


def test_grpo_runs_on_one_sample_and_has_no_reference_model():
    few, many = {"gpus": 8, "tokens": 1}, {"gpus": 8, "tokens": 8192}
    assert peak("grpo", **few) == pytest.approx(peak("dpo_precomputed", **few), rel=0.01)
    # trl v1.9.0, trl/trainer/grpo_trainer.py: logits are divided in place, and their gradients are copied once more.
    assert peak("grpo", **many) < peak("dpo", **many)
    assert peak("grpo", "lora", **many) > peak("sft", "lora", **many, loss="chunked")


def test_losses_that_report_the_entropy_hold_it_for_128_tokens_at_a_time():
    """trl v1.9.0, trl/trainer/utils.py, entropy_from_logits; ORPO and LLaMA-Factory do not call it."""
    assert Setup("grpo", vocabulary=1000, logit=4).entropy == 3 * 128 * 1000 * 4
    assert Setup("orpo", vocabulary=1000).entropy == Setup("dpo", "llama-factory", vocabulary=1000).entropy == 0
    few = {"gpus": 1, "tokens": 1, "method": "lora", "optim": "sgd"}
    more = (peak("dpo_precomputed", **few) - peak("orpo", **few)) * GIB
    assert 0 < more <= 3 * 128 * 32_000 * 2 * 1.01
