"""Models are found by name or by the shapes of a checkpoint; for an unknown name a similar model is suggested."""

import json

import pytest

from autoconf.jobs.model_names import ModelNames
from autoconf.planner.known_names import model_names_of
from autoconf.predictor import registry

QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
    "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> ModelNames:
    known = registry.card("2.0.0").domain.models
    return ModelNames({name: model.aliases for name, model in known.items()})


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes the config of a checkpoint to a folder."""

    def write(config: dict, name: str = "tuned") -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return str(folder)

    return write


def test_a_folder_or_its_config_is_matched_to_the_model_with_its_shapes(models, checkpoint):
    folder = checkpoint({**QWEN, "rope_theta": 5.0, "unsloth_version": "2025.1"})
    for written in (folder, f"{folder}/config.json"):
        assert models.find(written) == "qwen2.5-7b"
        assert models.note(written) == (
            f"model_name {written!r} was taken for qwen2.5-7b by the shapes in {folder}/config.json"
        )


def test_a_config_that_changes_is_read_again(models, checkpoint):
    folder = checkpoint(QWEN)
    assert models.find(folder) == "qwen2.5-7b"
    checkpoint({**QWEN, "vocab_size": 152_066_000})
    assert models.find(folder) is None


@pytest.mark.parametrize(
    ("changes", "name", "model"),
    [
        ({}, "tuned", "llama3.1-8b"),
        ({"_name_or_path": "meta-llama/Meta-Llama-3-8B"}, "tuned", "llama3-8b"),
        ({"_name_or_path": "/tmp/llama3-70b"}, "Meta-Llama-3-8B-Instruct", "llama3-8b"),
    ],
)
def test_of_models_with_the_same_shapes_the_one_named_by_the_checkpoint_is_chosen(
    models, checkpoint, changes, name, model
):
    folder = checkpoint({**LLAMA, **changes}, name)
    assert models.find(folder) == model
    other = ({"llama3.1-8b", "llama3-8b"} - {model}).pop()
    assert models.note(folder).endswith(f"config.json, which {other} has too")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {**QWEN, "vocab_size": 151936},
            "(qwen2.5-7b comes nearest: vocab_size is 151936, not 152064); ado-autoconf trace",
        ),
        ({"model_type": "mamba"}, "no model of this version has model_type 'mamba'; ado-autoconf trace adds it"),
        ({**QWEN, "quantization_config": {}}, "its shapes are those of qwen2.5-7b: give --model-name qwen2.5-7b for"),
        ({**QWEN, "text_config": {}}, "text_config: a model of several parts"),
        ({"hidden_size": 8}, "model_type: is missing"),
        ([QWEN], "must hold a JSON object"),
    ],
)
def test_a_checkpoint_of_no_known_model_is_refused_with_what_differs(models, checkpoint, config, says):
    folder = checkpoint(config)
    assert models.find(folder) is None
    reason = models.refusal(folder, "2.0.0")
    assert reason.startswith(f"model_name {folder!r}: {folder}/config.json: ")
    assert says in reason


def test_a_config_is_data_and_its_code_is_not_run(models, checkpoint, tmp_path):
    folder = checkpoint({**QWEN, "auto_map": {"AutoConfig": "configuration_evil.Evil"}})
    (tmp_path / "tuned" / "configuration_evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert models.find(folder) == "qwen2.5-7b"
    assert models.note(folder).endswith(", without the code that comes with it (auto_map)")


def test_a_name_of_the_domain_is_not_looked_up_as_a_folder(models, checkpoint, tmp_path, monkeypatch):
    checkpoint(LLAMA, "qwen2.5-7b")
    monkeypatch.chdir(tmp_path)
    assert models.find("qwen2.5-7b") == "qwen2.5-7b"
    assert models.note("qwen2.5-7b") == ""
    assert models.find("./qwen2.5-7b") == "llama3.1-8b"


@pytest.mark.parametrize(
    ("written", "like", "how"),
    [
        ("acme/Qwen2.5-7B-Instruct", "qwen2.5-7b", "ends like"),
        ("/data/models/Qwen2.5-7B-Instruct", "qwen2.5-7b", "ends like"),
        ("/data/models/Qwen2.5-7B-Instruct/", "qwen2.5-7b", "ends like"),
        ("C:\\models\\qwen2.5_7b", "qwen2.5-7b", "ends like"),
        ("somebody/llama-7b", "llama-7b", "ends like"),
        ("acme/Qwen2.5-7B-Instruct-ft", "qwen2.5-7b", "contains the name"),
        ("Qwen2.5-7B-Instruct-ft", "qwen2.5-7b", "contains the name"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "llama3.1-8b", "contains the name"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "llama3.1-8b", "contains the name"),
    ],
)
def test_an_unknown_name_with_a_known_one_in_it_names_that_and_trace(models, written, like, how):
    assert models.find(written) is None
    reason = models.refusal(written, "2.0.0")
    assert f"is not in the domain of version 2.0.0. It {how} {like}: " in reason
    assert f"give --model-name {like}, or the folder of its config.json; ado-autoconf trace" in reason


@pytest.mark.parametrize(
    "written", ["gpt-9", "acme/Qwen2.5-8B", "x/qwen3-4b-and-8b", "meta-llama/Llama-3.2-11B", "a/b"]
)
def test_no_model_of_another_size_is_named_as_the_one(models, written):
    reason = models.refusal(written, "2.0.0")
    assert "--model-name" not in reason
    assert "is not in the domain of version 2.0.0, which has " in reason


def test_a_folder_without_a_config_and_a_missing_file_are_named(tmp_path):
    names = ModelNames({"llama-7b": ()})
    assert names.refusal(str(tmp_path), "2.0.0").endswith(f"; the folder {tmp_path} has no config.json")
    missing = tmp_path / "config.json"
    assert names.refusal(str(missing), "2.0.0").endswith(f"; there is no file {missing}")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("unsloth/Meta-Llama-3.1-8B", "llama3.1-8b"), ("Unsloth/Qwen3-14B", "qwen3-14b"),
        ("unsloth/gemma-3-4b-it", "gemma-3-4b"),
        ("unsloth/Phi-4", None), ("unsloth/Qwen3-8B-GGUF", None), ("someone/Meta-Llama-3.1-8B", None),
    ],
)  # fmt: skip
def test_copies_that_unsloth_publishes_are_known_from_3_0_0_on(name, model):
    names = model_names_of(registry.card("3.0.0").domain)
    assert names.find(name) == model
    assert (f"{name!r} was taken for {model}, of which it is a copy" in names.note(name)) == (model is not None)
    assert model_names_of(registry.card("2.0.0").domain).find(name) is None
