"""A checkpoint is recognized by exactly the settings that decide its memory."""

import json
import os

import pytest

from autoconf.errors import BadInput
from autoconf.jobs import model_config
from autoconf.jobs.model_config import config_file, nearest, obstacle, read_config, same_shapes

MODELS = list(json.loads(model_config.TABLE.read_text(encoding="utf-8"))["models"])
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def test_changes_of_a_fine_tuned_model_that_need_no_memory_are_ignored():
    changed = {
        **LLAMA, "rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3"}, "max_position_embeddings": 4096,
        "torch_dtype": "float16", "pad_token_id": 3, "eos_token_id": [1, 2], "use_cache": False, "unsloth_fixed": True,
        "_name_or_path": "somewhere", "attention_dropout": 0.1, "tie_word_embeddings": False, "head_dim": 128,
        "transformers_version": "4.46.0", "hidden_act": "swish", "sliding_window": None, "pretraining_tp": 1,
    }  # fmt: skip
    assert same_shapes(changed, MODELS) == same_shapes(LLAMA, MODELS) == ["llama3-8b", "llama3.1-8b"]


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 128272}, {"hidden_size": 4224}, {"num_hidden_layers": 31}, {"num_attention_heads": 16},
        {"num_key_value_heads": 4}, {"num_key_value_heads": None}, {"intermediate_size": 14337}, {"head_dim": 64},
        {"tie_word_embeddings": True}, {"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "relu"},
        {"model_type": "mistral"}, {"hidden_size": "4096"}, {"num_attention_heads": 0}, {"num_hidden_layers": None},
    ],
)  # fmt: skip
def test_settings_that_decide_memory_distinguish_models(change):
    assert same_shapes({**LLAMA, **change}, MODELS) == []


def test_the_nearest_model_is_named_with_the_differences():
    name, differences = nearest({**LLAMA, "vocab_size": 128257}, MODELS)
    assert name == "llama3-8b"
    assert list(map(str, differences)) == ["vocab_size is 128257, not 128256"]
    assert nearest({"model_type": "mamba"}, MODELS) is None
    assert nearest(LLAMA, ["opt-13b"]) is None


def test_a_config_without_a_type_or_of_several_parts_is_not_compared():
    assert obstacle(LLAMA) == ""
    assert obstacle({"hidden_size": 1}).startswith("model_type: is missing")
    assert obstacle({"model_type": 7}).startswith("model_type: is missing")
    assert obstacle({**LLAMA, "vision_config": {}}).startswith("vision_config: a model of several parts")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1]", "must hold a JSON object, but holds a list"),
        (b"{", "cannot read it as JSON"),
        (b"\xff\xfe\x00", "cannot read it as JSON"),
        (b"[" * 100_000, "cannot read it as JSON"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "cannot read it as JSON"),
        (b" " * (1 << 20) + b"{}", "is larger than 1 MiB"),
    ],
)
def test_an_invalid_config_is_refused(tmp_path, content, says):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=says):
        read_config(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_the_place_of_a_config_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BadInput, match="is not a regular file"):
        read_config(tmp_path / "config.json")


def test_a_folder_or_a_file_leads_to_a_config_and_a_name_does_not(tmp_path):
    file = tmp_path / "config.json"
    assert config_file(str(tmp_path)) is None
    file.write_text("{}", encoding="utf-8")
    assert config_file(str(tmp_path)) == config_file(str(file)) == file
    for name in ("llama-7b", "meta-llama/Llama-3.1-8B", "~nobody-of-that-name/x", "a\0b", "x" * 5_000, ""):
        assert config_file(name) is None


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_table_is_that_of_architectures_yaml():
    pytest.importorskip("transformers")
    from autoconf.pipeline.tracing.shape_table import written

    assert model_config.TABLE.read_text(encoding="utf-8") == written()


def test_every_model_is_recognized_in_the_config_that_transformers_saves(tmp_path):
    """Three forms of a config: complete, as in transformers 5; without defaults; and as published."""
    transformers = pytest.importorskip("transformers")
    from autoconf.pipeline.catalog import architectures

    for name, architecture in architectures().items():
        config = transformers.AutoConfig.for_model(**architecture.config)
        config.save_pretrained(tmp_path)
        saved = read_config(tmp_path / "config.json")
        forms = {"saved": saved, "whole": config.to_dict(), "published": architecture.config}
        for form, values in forms.items():
            assert name in same_shapes(values, MODELS), (form, nearest(values, MODELS))


def test_models_with_the_same_shapes_have_the_same_number_of_parameters():
    pytest.importorskip("yaml")
    from autoconf.pipeline.catalog import architectures

    known = architectures()
    groups = {tuple(same_shapes(architecture.config, MODELS)) for architecture in known.values()}
    assert sum(map(len, groups)) == len(known)
    for group in groups:
        assert len({known[name].parameters for name in group}) == 1
