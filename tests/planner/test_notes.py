"""Notes on answers: resolved names, settings that a GPU cannot run, and decisive defaults."""

import json

import numpy as np
import pandas as pd
import pytest

from autoconf import Job, Workload, avoid_oom, cheapest_gpu, estimate, explain, largest_batch, largest_sample, recommend
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.predictor import registry

JOB = {"model_name": "qwen2.5-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": 2048, "batch_size": 8}
CHOSEN = {"stack": "reference", "gradient_accumulation_steps": 4, "optim": "adamw_torch"}
H100 = "gpu_model 'H100' was taken for NVIDIA-H100-80GB-HBM3, and also fits NVIDIA-H100-PCIe and NVIDIA-H100-NVL"
T4 = "Tesla-T4 (compute capability 7.5) has no bfloat16 and no FlashAttention-2, which this answer assumes: "
QWEN = {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip


def job(**changes) -> dict:
    return {**JOB, **CHOSEN, **changes}


def without(fields: dict, *names: str) -> dict:
    return {field: value for field, value in fields.items() if field not in names}


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_query_notes_how_a_gpu_name_was_resolved():
    fields = job(gpu_model="H100")
    each = {**without(fields, "batch_size"), "per_device_train_batch_size": 2}
    answers = [
        recommend(Workload(**fields)),
        explain(Workload(**fields)).recommendation,
        estimate(Workload(**fields), 2),
        avoid_oom(Job(**each), 2),
        largest_batch(Job(**without(fields, "batch_size")), 2),
        largest_sample(Job(**without(fields, "tokens_per_sample")), 2),
    ]
    assert [answer.notes for answer in answers] == [(H100,)] * len(answers)
    assert recommend(Workload(**job(gpu_model="NVIDIA-H100-80GB-HBM3"))).notes == ()
    assert min_gpu_recommender(**fields, model_version="2.0.0")["notes"] == H100


def test_an_answer_is_the_same_under_every_name():
    named = {
        written: recommend(Workload(**job(gpu_model=written))) for written in ("H100", "h100-sxm", "H100 80 GB SXM5")
    }
    assert set(map(repr, named.values())) == {repr(recommend(Workload(**job(gpu_model="NVIDIA-H100-80GB-HBM3"))))}
    assert len({answer.notes for answer in named.values()}) == 3


def test_a_name_that_fits_several_types_gets_no_answer_anywhere():
    fields = job(gpu_model="A100")
    reasons = {
        recommend(Workload(**fields)).reason,
        estimate(Workload(**fields), 2).reason,
        recommend(pd.DataFrame([fields])).loc[0, "reason"],
        min_gpu_recommender(**fields, model_version="3.0.0")["reason"],
    }
    (reason,) = reasons
    assert reason.startswith(
        "gpu_model 'A100' fits several GPU types of version 3.0.0; give one of NVIDIA-A100-SXM4-80GB"
    )


def test_a_table_has_a_column_of_notes_if_there_are_any():
    rows = [job(gpu_model=name) for name in ("H100", "L40S", "T4", "A100")]
    found = recommend(pd.DataFrame(rows), "2.0.0")
    assert found["notes"].tolist()[:2] == [H100, ""]
    assert found["notes"][2].startswith(f"gpu_model 'T4' was taken for Tesla-T4; {T4}")
    assert found["notes"][3] == ""
    assert "notes" not in recommend(pd.DataFrame(rows[1:2]))


def test_chunks_with_and_without_notes_make_one_table(monkeypatch):
    from autoconf.planner import runner

    rows = pd.DataFrame([job(gpu_model=name) for name in ("L40S", "L40S", "H100", "L40S", "H100")])
    whole = recommend(rows)
    monkeypatch.setattr(runner, "CHUNK", 2)
    pd.testing.assert_frame_equal(recommend(rows), whole)


def test_a_checkpoint_is_answered_as_the_model_of_its_shapes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN), encoding="utf-8")
    for written in (str(tmp_path), str(tmp_path / "config.json")):
        answer = recommend(Workload(**job(model_name=written)))
        assert answer == recommend(Workload(**job()))
        assert answer.notes == (
            f"model_name {written!r} was taken for qwen2.5-7b by the shapes in {tmp_path / 'config.json'}",
        )
    table = recommend(pd.DataFrame([job(model_name=str(tmp_path)), job(model_name="acme/Qwen2.5-7B-Instruct")]))
    assert table["can_recommend"].tolist() == [1, 0]
    assert "--model-name qwen2.5-7b" in table["reason"][1] and "ado-autoconf trace" in table["reason"][1]


# --- old GPU types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["Tesla-T4", "Tesla-V100-SXM2-32GB"])
def test_version_2_0_0_warns_of_gpus_without_bfloat16_and_answers(gpu):
    answer = recommend(Workload(**job(gpu_model=gpu, model_name="qwen2.5-0.5b")), "2.0.0")
    assert answer.can_recommend == 1
    (note,) = answer.notes
    assert note.startswith(gpu) and "has no bfloat16 and no FlashAttention-2, which this answer assumes" in note


def test_other_gpu_types_get_no_warning():
    rows = pd.DataFrame([job(gpu_model=name) for name in registry.card("2.0.0").domain.gpus])
    found = recommend(rows, "2.0.0")
    noted = rows["gpu_model"][found["notes"] != ""].tolist()
    assert noted == ["Tesla-V100-SXM2-32GB", "Tesla-T4"]


def test_the_ranking_of_gpu_types_warns_of_those_alone():
    ranking = cheapest_gpu(pd.DataFrame([without(job(), "gpu_model")]), "2.0.0")
    old = ranking["notes"].str.contains("has no bfloat16")
    assert set(ranking["gpu_model"][old]) == {"Tesla-V100-SXM2-32GB", "Tesla-T4"}


# --- defaults ---------------------------------------------------------------------------------------------------------


def changed(**changes):
    return recommend(Workload(**{**JOB, **changes}))


def test_a_decisive_default_is_named_with_the_answers_for_other_values():
    answer = changed()
    assert (answer.gpus, changed(stack="trl").gpus, changed(stack="fms-hf-tuning").gpus) == (2, 1, 4)
    assert answer.notes == (
        "stack was not given, reference is the default, and it decides: with trl it takes 1 GPU, with fms-hf-tuning it "
        "takes 4 GPUs",
    )
    assert changed(stack="reference").notes == ()


def test_a_default_accumulation_is_named_if_it_decides():
    large = {"model_name": "llama3.1-8b", "method": "full", "gpu_model": "NVIDIA-A100-SXM4-40GB", "stack": "reference"}
    assert (changed(**large).gpus, changed(**large, gradient_accumulation_steps=1).gpus) == (8, 4)
    found = [note for note in changed(**large).notes if note.startswith("gradient")]
    assert found == [
        "gradient_accumulation_steps was not given, 4 is the default, and it decides: with 1 it takes 4 GPUs"
    ]
    assert not any(note.startswith("gradient") for note in changed(**large, gradient_accumulation_steps=4).notes)


@pytest.mark.long
def test_every_note_on_a_default_agrees_with_the_answer_for_the_other_value():
    """For random jobs, a default is named exactly if another value changes the layout."""
    generator, domain = np.random.default_rng(5), registry.card("2.0.0").domain
    models = generator.choice(list(domain.models), 4, replace=False)
    decided = set()
    for _ in range(40):
        fields = {
            "model_name": str(generator.choice(models)),
            "method": str(generator.choice(domain.methods)),
            "gpu_model": str(generator.choice(list(domain.gpus))),
            "tokens_per_sample": 1024,
            "batch_size": int(generator.choice([1, 4, 8])),
        }
        answer = recommend(Workload(**fields))
        for field, others in (
            ("gradient_accumulation_steps", [1]),
            ("optim", ["adamw_bnb_8bit"]),
            ("stack", ["trl", "fms-hf-tuning", "llama-factory"]),
        ):
            answers = [recommend(Workload(**fields, **{field: other})) for other in others]
            layouts = {(other.gpus, other.workers) for other in answers if other.outcome != "outside_domain"}
            named = any(note.startswith(f"{field} was not given") for note in answer.notes)
            assert named == bool(layouts - {(answer.gpus, answer.workers)}), (fields, field)
            decided |= {(field, named)}
    assert len(decided) == 6


def test_a_default_decides_whether_a_job_fits_and_which_gpu_is_cheapest():
    assert "with trl it fits" in estimate(Workload(**JOB), 1).notes[-1]
    found = cheapest_gpu(Job(**without(JOB, "gpu_model")))
    (note,) = [note for note in found.notes if note.startswith("stack")]
    for stack in ("trl", "fms-hf-tuning", "llama-factory"):
        other = cheapest_gpu(Job(**without(JOB, "gpu_model"), stack=stack))
        same = (other.gpus, other.workers, other.gpu_model) == (found.gpus, found.workers, found.gpu_model)
        assert (f"with {stack} it takes {other.gpus} GPU" in note and f"of {other.gpu_model}" in note) != same
    assert "with " in note


def test_in_ado_and_in_tables_no_default_is_left_open():
    assert "notes" not in min_gpu_recommender(**JOB, model_version="2.0.0")
    assert "notes" not in recommend(pd.DataFrame([JOB]))


# --- estimates --------------------------------------------------------------------------------------------------------


def test_an_estimate_that_does_not_fit_says_the_probability_that_is_required():
    found = estimate(Workload(**job()), 1)
    assert found.fits == 0
    assert found.reason.startswith(f"probability {found.probability:.2f}, 0.90 required: training peaks near ")
    assert estimate(Workload(**job()), 2).reason == ""
