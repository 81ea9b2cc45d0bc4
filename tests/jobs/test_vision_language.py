"""Vision-language models: a tower is never left out silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoconf import recommend
from autoconf.errors import BadInput
from autoconf.jobs.importers.reader import read_job
from autoconf.jobs.job import Workload
from autoconf.jobs.model_names import ModelNames
from autoconf.predictor import registry

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"
JOB = {"method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 1024, "batch_size": 8}


@pytest.fixture(scope="module")
def models() -> ModelNames:
    known = registry.card("3.0.0").domain.models
    return ModelNames({name: model.aliases for name, model in known.items()})


@pytest.mark.parametrize(
    ("name", "language_model"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2.5-1.5b"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2.5-3b"),
        ("unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit", "qwen2.5-7b"),
        ("Qwen/Qwen3-VL-2B-Thinking", "qwen3-1.7b"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3-30b-a3b"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral-small-24b-2501"),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral-small-24b-2501"),
    ],
)
def test_a_model_whose_language_model_is_known_is_refused_with_the_way_to_ask(models, name, language_model):
    assert models.find(name) is None
    refusal = models.refusal(name, "3.0.0")
    assert f"give --model-name {language_model} for a job without the tower" in refusal
    assert "GiB more per GPU for its weights in bfloat16, and memory for images" in refusal


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.2-11B-Vision-Instruct", "HuggingFaceTB/SmolVLM-Instruct", "google/gemma-3n-E4B-it",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "mistralai/Ministral-3-8B-Instruct-2512", "llava-hf/llava-1.5-7b-hf",
        "mistralai/Pixtral-12B-2409", "OpenGVLab/InternVL3-8B", "microsoft/Phi-4-multimodal-instruct",
        "google/paligemma2-3b-pt-224", "meta-llama/Llama-4-Maverick-17B-128E",
    ],
)  # fmt: skip
def test_other_vision_language_models_are_refused_by_name(models, name):
    assert models.find(name) is None
    assert "it is a vision-language model whose vision tower is not counted; no" in models.refusal(name, "3.0.0")


@pytest.mark.parametrize("name", ["acme/Ministral-3b", "acme/supervision-7b", "acme/marvl-8b"])
def test_a_name_that_only_resembles_one_is_refused_like_any_other(models, name):
    assert "vision-language" not in models.refusal(name, "3.0.0")


@pytest.mark.parametrize("name", ["gemma-3-4b", "google/gemma-3-4b-it", "google/gemma-3-27b-pt"])
@pytest.mark.parametrize("version", ["2.0.0", "3.0.0"])
def test_an_answer_for_the_language_model_of_a_checkpoint_says_so(name, version):
    notes = recommend(Workload(model_name=name, model_version=version, **JOB)).notes
    said = "is the language model alone: a job that loads the vision tower too (0.42 B parameters)"
    assert any(said in note for note in notes)


def test_models_without_a_tower_have_no_such_note(models):
    for name in ("gemma-3-1b", "google/gemma-3-270m-it", "qwen2.5-7b"):
        assert models.find(name) is not None and models.note(name) == ""


@pytest.mark.parametrize("outside", [{}, {"text_config": None}])
def test_a_config_of_several_parts_is_refused_with_its_language_model(models, tmp_path, outside):
    """Published configs of Qwen2.5-VL have the language model's settings outside of any part, or in text_config."""
    language = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    }  # fmt: skip
    config = {"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}}
    config |= {"text_config": {**language, "model_type": "qwen2_5_vl_text"}} if outside else language
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.find(str(tmp_path)) is None
    assert models.refusal(str(tmp_path), "3.0.0").endswith(
        "no part is left out; its language model has the shapes of qwen2.5-7b: give --model-name qwen2.5-7b for a job "
        "without the tower"
    )


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "mllama", "llama4", "gemma3n"])
def test_a_config_whose_language_model_is_unknown_is_refused_without_a_suggestion(models, name):
    assert models.refusal(str(CONFIGS / f"{name}.json"), "3.0.0").endswith("no part is left out")


LLAMA_FACTORY = "stage: sft\ntemplate: qwen2_vl\ncutoff_len: 2048\n"
TRL = "dataset_name: images\nmax_length: 2048\nlearning_rate: 1e-5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{LLAMA_FACTORY}finetuning_type: lora\nfreeze_vision_tower: false", "training a vision tower"),
        (f"{LLAMA_FACTORY}finetuning_type: full\nfreeze_language_model: true", "training a part of the model"),
        (f"{LLAMA_FACTORY}finetuning_type: full", ""),
        (TRL, "trains the vision tower as well"),
        (f"{TRL}use_peft: true\nlora_target_modules: [q_proj, v_proj]", ""),
    ],
)
def test_files_that_train_a_tower_are_refused(tmp_path, text, said):
    path = tmp_path / "job.yaml"
    always = "model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct\nper_device_train_batch_size: 1\nbf16: true\n"
    path.write_text(always + text)
    options = {} if text.startswith(LLAMA_FACTORY) else {"stack": "trl"}
    if said:
        with pytest.raises(BadInput, match=said):
            read_job([str(path)], options)
    else:
        assert read_job([str(path)], options).fields["model_name"] == "Qwen/Qwen2.5-VL-7B-Instruct"
