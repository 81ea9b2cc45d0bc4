"""User models from Hugging Face configs: tracing, refusals, and the trace file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from same_figures import assert_same_figures
from typer.testing import CliRunner

import autoconf
from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.memory.profile import LayerWay, ModelProfile
from autoconf.memory.store import ModelsTable
from autoconf.pipeline.catalog import Architecture, architectures
from autoconf.pipeline.tracing import cache as trace_cache
from autoconf.pipeline.tracing import summary
from autoconf.pipeline.tracing.trace_file import read_trace, write_trace
from autoconf.predictor import registry

KNOWN = "qwen2.5-0.5b"
# Settings in files that do not affect shapes.
INERT = {
    "_name_or_path": "Qwen/Qwen2.5-0.5B", "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": [151643, 151645], "initializer_range": 0.02, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "dtype": "bfloat16",
    "transformers_version": "4.57.1", "use_cache": True, "return_dict": False, "output_hidden_states": True,
    "layer_types": ["full_attention"] * 24,
}  # fmt: skip
SMALL = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
LLAMA = {"model_type": "llama", **SMALL}


@pytest.fixture(scope="session")
def own_model() -> Any:
    return pytest.importorskip("autoconf.pipeline.tracing.hf_config", reason="traces need the extra [build]")


@pytest.fixture
def written(tmp_path):
    """A function that writes a config and returns its path."""

    def write(config: Any) -> str:
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return str(path)

    return write


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["trace", *arguments])


def shipped(name: str) -> ModelProfile:
    return ModelsTable.read(registry.MODELS / registry.DEFAULT).figures(name)


def of_ones_own(name: str, known: str = KNOWN) -> tuple[Architecture, ModelProfile]:
    """A trace of a model of the newest version."""
    architecture = architectures()[known].model_copy(update={"name": name, "aliases": [], "later_aliases": []})
    figures = shipped(known)
    return architecture, ModelProfile(name, "", figures.layers, figures.heads, figures.units, figures.problems)


@pytest.fixture
def trace_file(tmp_path) -> Path:
    path = tmp_path / "mine.traces.parquet"
    with path.open("wb") as stream:
        write_trace(*of_ones_own("mine"), stream)
    return path


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "obstacle"),
    [
        ('{"model_type": "llama",\n "hidden_size" 4}', "line 2, column 16: not JSON: Expecting ':' delimiter"),
        ("[1]", "must hold a JSON object, but holds a list"),
        ({"hidden_size": 64}, "model_type: is missing"),
        ({"model_type": "lama"}, "model_type: transformers 5.23.0 does not know 'lama'"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "m.C"}}, "auto_map: model_type 'mine' needs custom code"),
        ({"model_type": "bert"}, "model_type: 'bert' is not a causal language model"),
        ({"model_type": "t5"}, "model_type: 't5' is not a causal language model"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 64}}, "text_config: a model of several parts"),
        (
            {**LLAMA, "quantization_config": {"quant_method": "awq"}},
            "quantization_config: the checkpoint is already quantized",
        ),
        ({**LLAMA, "hidden_size": "wide"}, "Validation error for field 'hidden_size'"),
        ({**LLAMA, "num_attention_heads": 0}, "transformers rejects it: ZeroDivisionError"),
        ({**LLAMA, "num_hidden_layers": 1}, "num_hidden_layers: must be a whole number from 2 to 1024, got 1"),
        ({**LLAMA, "rope_scaling": 4}, "no model can be traced from it: TypeError: argument of type 'int'"),
        ({**architectures()["deepseek-v2-lite"].config, "first_k_dense_replace": [1]}, "'first_k_dense_replace'"),
        ({"model_type": "qwen2_moe", **SMALL, "decoder_sparse_step": 2}, "mlp.class: Qwen2MoeMLP and Qwen2MoeSparse"),
        # Layers that attend to a window rotate, and the others do not.
        ({"model_type": "cohere2", **SMALL, "num_hidden_layers": 8}, "layers 1 and 3 differ (they hold different tens"),
        ({"model_type": "falcon_h1", **SMALL}, "its layers do more than attention"),
        ({"model_type": "bloom", **SMALL}, "creates a tensor of tokens x tokens"),
        (
            {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global"], 2]]},
            "attention has custom classes",
        ),
        ({"model_type": "persimmon", **SMALL}, "with --lora-targets; there are query_key_value, dense, dense_h_to_4h"),
    ],
)
def test_the_error_for_an_untraceable_config_names_the_setting(own_model, written, config, obstacle):
    path = written(config)
    with pytest.raises(BadInput) as refused:
        own_model.own_architecture(path, "mine")
    assert str(refused.value).startswith(path) and obstacle in str(refused.value)


def test_a_missing_file_is_bad_input(own_model, tmp_path):
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(BadInput, match="cannot read it: No such file or directory"):
            own_model.own_architecture(str(path), "mine")


@pytest.mark.parametrize(
    "name", [KNOWN, "pythia-160m", "opt-125m", "granite-4.0-h-1b", "deepseek-v2-lite", "smollm3-3b", "gemma-3-1b",
             "phi-3-mini", "granite-3.1-1b-a400m", "starcoder2-3b"],
)  # fmt: skip
def test_a_known_config_gives_the_known_architecture(own_model, written, name):
    known = architectures()[name]
    found = own_model.own_architecture(written(known.config), "mine")
    assert (found.parameters, found.lora_targets) == (known.parameters, known.lora_targets)
    assert (found.kinds, found.longest_sample, found.experts) == (known.kinds, known.longest_sample, known.experts)
    assert (found.name, found.source) == ("mine", "config.json")


def test_names_of_layers_that_transformers_5_writes_are_read(own_model, written):
    known = architectures()["granite-4.0-h-1b"]
    names = {"attention": "full_attention", "mamba": "linear_attention"}
    found = own_model.own_architecture(
        written({**known.config, "layer_types": [names[kind] for kind in known.kinds]}), "mine"
    )
    assert (found.kinds, found.parameters) == (known.kinds, known.parameters)


def test_settings_that_are_not_shapes_change_nothing(own_model, written):
    published = architectures()[KNOWN].config
    plain = own_model.own_architecture(written(published), "mine")
    found = own_model.own_architecture(written({**published, **INERT}), "mine")
    assert trace_cache.fingerprint(found) == trace_cache.fingerprint(plain)
    wider = own_model.own_architecture(written({**published, "intermediate_size": 5120}), "mine")
    assert trace_cache.fingerprint(wider) != trace_cache.fingerprint(plain)


GPT2 = {"model_type": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 512, "n_positions": 256}


def test_learned_positions_limit_the_length_of_samples(own_model, written):
    assert own_model.own_architecture(written(GPT2), "mine").in_domain().max_tokens_per_sample == 256
    assert own_model.own_architecture(written(LLAMA), "mine").in_domain().max_tokens_per_sample is None


def test_gpt_2s_convolutions_are_quantized_like_linear_layers(own_model, written):
    from transformers.pytorch_utils import Conv1D

    from autoconf.jobs.stack import Stack
    from autoconf.pipeline.tracing.model_setup import TrainingSetup, build_model

    found = own_model.own_architecture(written(GPT2), "mine")
    assert found.lora_targets == ["c_attn"]
    model = build_model(TrainingSetup(found, "qlora", Stack(quantization="nf4")))
    assert not any(isinstance(module, Conv1D) for module in model.modules())


def test_adapters_are_on_the_requested_modules(own_model, written):
    path = written(LLAMA)
    assert own_model.own_architecture(path, "mine", ["o_proj", "up_proj"]).lora_targets == ["o_proj", "up_proj"]
    with pytest.raises(
        BadInput, match="--lora-targets: no linear module of a layer is named 'c_attn'; there are q_proj"
    ):
        own_model.own_architecture(path, "mine", ["q_proj", "c_attn"])


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_trace_is_read_as_it_was_written_and_the_same_one_gives_the_same_bytes(trace_file, tmp_path):
    architecture, figures = of_ones_own("mine")
    found = read_trace(trace_file)
    assert found.architecture == architecture
    assert found.figures.made_of == trace_cache.fingerprint(architecture)
    assert_same_figures(found.figures, figures)
    with (tmp_path / "again").open("wb") as stream:
        write_trace(found.architecture, found.figures, stream)
    assert (tmp_path / "again").read_bytes() == trace_file.read_bytes()


def test_a_trace_of_another_release_has_to_be_made_again(trace_file, monkeypatch):
    monkeypatch.setattr(trace_cache, "TRACER", trace_cache.TRACER + 1)
    with pytest.raises(BadInput, match="another release of ado-autoconf traced it, or it was altered; trace the model"):
        read_trace(trace_file)


def test_an_invalid_trace_file_is_refused(trace_file, tmp_path):
    moments = registry.MODELS / registry.DEFAULT / "moments.parquet"
    cut = tmp_path / "cut"
    cut.write_bytes(trace_file.read_bytes()[:-100])
    for path in (moments, cut, Path(__file__)):
        with pytest.raises(BadInput, match="it is not a file of ado-autoconf trace"):
            read_trace(path)
    with pytest.raises(BadInput, match="No such file or directory"):
        read_trace(tmp_path / "none")


def test_reading_a_trace_takes_no_torch(trace_file):
    code = (
        f"import sys; sys.modules['torch'] = None; from autoconf.pipeline.tracing.trace_file import read_trace; "
        f"print(read_trace({str(trace_file)!r}).architecture.name)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "mine\n"


def test_the_summary_answers_as_the_newest_version_does(trace_file):
    found = summary.summary(trace_file)
    assert found["parameters"] == architectures()[KNOWN].parameters
    answers = ["can_recommend", "gpus", "workers", "reason"]
    table = pd.DataFrame(found["layouts"])
    expected = autoconf.recommend(table.drop(columns=answers).assign(model_name=KNOWN))
    yes = expected["can_recommend"] == 1
    assert len(table) == 2 * len(registry.card(registry.DEFAULT).domain.gpus) * 3 * 2 and yes.any()
    assert table["can_recommend"].tolist() == expected["can_recommend"].tolist()
    for column in ("gpus", "workers"):
        assert table.loc[yes, column].astype(int).tolist() == expected.loc[yes, column].tolist()


def test_the_cost_of_tokens_is_the_difference_of_estimates(trace_file):
    job = {"model_name": KNOWN, "method": "lora", "gpu_model": "NVIDIA-B200", "batch_size": 8, "stack": "reference"}
    peaks = [
        autoconf.estimate(autoconf.Workload(**job, tokens_per_sample=tokens), 8).peak_memory_gib
        for tokens in (30_000, 31_000)
    ]
    found = summary.summary(trace_file)["gib_per_1000_tokens"]["reference"]["lora"]
    assert found == pytest.approx(peaks[1] - peaks[0], abs=1e-4)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--name", "Qwen2.5 0.5B"], "--name: must have no white space"),
        (["--name", "a/b"], "--name: must have no white space and no / or"),
        (["--name", "..."], "--name: must have a letter from a to z or a digit"),
        (["--name", "qwen2.5-0.5B-instruct"], "has 'qwen2.5-0.5B-instruct' already, as qwen2.5-0.5b; choose another"),
        (["--name", "LLaMA-7b"], "has 'LLaMA-7b' already, as llama-7b; choose another"),
        (["--name", "mine", "--alias", "Qwen/Qwen2.5-0.5B"], "--alias: in version 3.0.0 'Qwen/Qwen2.5-0.5B' is qwen2"),
    ],
)
def test_names_that_a_version_has_or_a_file_cannot_have_are_refused(written, arguments, sentence):
    done = command(written(LLAMA), *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_without_the_extra_the_command_names_it(written):
    code = "import sys; sys.modules['torch'] = None; from autoconf.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", written(LLAMA), "--name", "mine"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("trace needs the extra [build]: in a clone of the project") and "torch" in line


def test_a_refused_config_and_a_folder_that_is_not_there_leave_no_file(own_model, written, tmp_path):
    done = command(written({"model_type": "bert"}), "--name", "mine", "--output", str(tmp_path))
    assert done.exit_code == 2 and "'bert' is not a causal language model" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    done = command(written(LLAMA), "--name", "mine", "--output", str(tmp_path / "none"))
    assert done.exit_code == 2 and "No such file or directory" in done.stderr


def test_an_unsupported_combination_is_recorded_and_the_others_are_traced(own_model, written, monkeypatch):
    """GPT-2 has no linear layer, but transformers needs its dtype for FlashAttention with float32 queries."""
    from autoconf.pipeline.tracing import trace_model

    ways = [LayerWay("full", dtype, "no", dtype, False, "none", "default") for dtype in ("bfloat16", "float32")]
    monkeypatch.setattr(trace_model, "all_ways", lambda *_: ways)
    figures = own_model.own_figures(own_model.own_architecture(written(GPT2), "mine"), iter)
    assert (list(figures.layers), figures.problems) == (ways[:1], {ways[1]: "StopIteration"})
