"""A config.json is answered by its shapes, or by a trace that is made when a query first names it, and kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import autoconf
from autoconf import Workload
from autoconf.cli import app
from autoconf.experiments import memory_estimator
from autoconf.memory.profile import ModelProfile
from autoconf.memory.store import ModelsTable
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.trace_file import write_trace
from autoconf.predictor import build_extra, registry, traced_models

KNOWN = "qwen2.5-0.5b"
QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
OTHER = {**QWEN, "vocab_size": 151_999}  # no version has its shapes
JOB = {"method": "lora", "gpu_model": "L40S", "tokens_per_sample": 2048, "batch_size": 16}
VERSIONS = ["2.0.0", "3.0.0"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the user."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def written(tmp_path):
    """A function that writes a config to a folder, and returns the folder."""

    def write(config: Any, name: str = "tuned") -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text, encoding="utf-8")
        return str(folder)

    return write


@pytest.fixture
def traced(written, cache) -> str:
    """The folder of a config whose trace is in the cache, with the figures of a known model."""
    folder = written(OTHER)
    architecture = architectures()[KNOWN].model_copy(update={"name": "other", "aliases": [], "later_aliases": []})
    figures = ModelsTable.read(registry.MODELS / "3.0.0").figures(KNOWN)
    profile = ModelProfile("other", "", figures.layers, figures.heads, figures.units, figures.problems)
    place = cache / "ado-autoconf" / "models"
    place.mkdir(parents=True)
    with (place / f"{traced_models.fingerprint(OTHER)}.traces.parquet").open("wb") as stream:
        write_trace(architecture, profile, stream)
    return folder


def recommend(model: str, **fields: Any) -> autoconf.Recommendation:
    return autoconf.recommend(Workload(**{**JOB, "model_name": model, "model_version": "3.0.0", **fields}))


def test_known_shapes_are_answered_without_a_trace(written, cache):
    for given in (folder := written(QWEN), f"{folder}/config.json"):
        assert recommend(given) == recommend(KNOWN)
        assert recommend(given).notes[0].startswith(f"model_name {given!r} was taken for {KNOWN} by the shapes in ")
    assert not cache.exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_other_shapes_are_answered_with_their_trace(traced, version):
    for given in (traced, f"{traced}/config.json"):
        found, known = recommend(given, model_version=version), recommend(KNOWN, model_version=version)
        assert found == known
        assert found.notes[0].startswith(
            f"model_name {given!r} is not a model of version {version}: it was traced from its config as a qwen2 model "
        )
        assert found.notes[1:] == known.notes  # also those on decisive defaults


def test_settings_that_never_matter_share_a_trace(traced, written):
    again = written({**OTHER, "rope_theta": 1e6, "_name_or_path": "acme/x", "torch_dtype": "bfloat16"}, "again")
    assert recommend(again) == recommend(traced)


def test_every_query_has_the_answer_of_the_trace(traced):
    def both(ask: Any, **fields: Any) -> tuple[Any, Any]:
        jobs = [
            autoconf.Job(**{**JOB, "model_name": name, "model_version": "3.0.0", **fields}) for name in (traced, KNOWN)
        ]
        return ask(jobs[0]), ask(jobs[1])

    mine, known = both(lambda job: autoconf.estimate(job, 8))
    assert mine == known
    assert mine.outcome == "ok"
    mine, known = both(lambda job: autoconf.largest_sample(job, 8), tokens_per_sample=None)
    assert mine == known
    assert mine.tokens_per_sample > 1000
    each = {"batch_size": None, "per_device_train_batch_size": 16}
    mine, known = both(lambda job: autoconf.avoid_oom(job, 1), **each)
    assert mine == known
    assert both(autoconf.cheapest_gpu, gpu_model=None)[0].can_recommend == 1
    speed, of_known = both(lambda job: autoconf.throughput(job, 8))
    assert speed.tokens_per_second == pytest.approx(of_known.tokens_per_second) and speed.outcome == "ok"
    assert any(note.startswith("not measured: ") for note in speed.notes)
    mine, known = both(autoconf.explain)
    assert mine.at == known.at
    assert "traced from its config" in mine.recommendation.notes[0]


def test_a_table_mixes_models_and_versions(traced):
    names = [KNOWN, traced, "no-such-model", traced]
    rows = [{**JOB, "model_name": name, "model_version": version} for name in names for version in ("1.1.0", *VERSIONS)]
    found = autoconf.recommend(pd.DataFrame(rows))
    totals = found["gpus"].where(found["can_recommend"] == 1).tolist()
    assert totals[4:6] == totals[10:12] == totals[1:3]
    assert found["outcome"][3] == found["outcome"][9] == "outside_domain"
    assert "ado-autoconf trace adds it" in found["reason"][3]  # version 1.1.0 answers for its own models only


def test_ado_and_the_command_answer_it(traced):
    fields = {**JOB, "model_name": traced, "model_version": "3.0.0"}
    expected = recommend(traced)
    assert min_gpu_recommender(**fields)["gpus"] == expected.gpus
    assert memory_estimator(**fields, number_gpus=2)["fits"] in (0, 1)
    options = ["--method=lora", "--gpu=L40S", "--seq-len=2048", "--batch=16", "--model-version=3.0.0", "--json"]
    for config in (traced, f"{traced}/config.json"):
        result = CliRunner().invoke(app, ["recommend", "--model-config", config, *options])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["gpus"] == expected.gpus
    for wrong, says in (
        (["--model-config", f"{traced}/none.json"], f"--model-config: there is no file {traced}/none.json"),
        (["--model-config", f"{traced}/config.txt"], "its name does not end in .json"),
        (["--model-config", str(Path(traced).parent)], "has no config.json"),
        (["--model-config", traced, "--model=llama-7b"], "--model-config and --model-name exclude each other"),
    ):
        result = CliRunner().invoke(app, ["recommend", *wrong, *options])
        assert result.exit_code == 2
        assert says in " ".join(result.output.split())


def test_without_the_extra_the_answer_says_how_to_install_it(written, monkeypatch):
    monkeypatch.setattr(build_extra, "find_spec", lambda package: None)
    found = recommend(written(OTHER))
    assert (found.outcome, found.can_recommend) == ("outside_domain", 0)
    assert "config.json: tracing a model that no version has needs the extra [build]: in a clone" in found.reason
    assert "torch and transformers not found" in found.reason


REFUSED = [
    ('{"model_type": "qwen2",', "cannot read it as JSON"),
    ("[]", "must hold a JSON object, but holds a list"),
    ({**QWEN, "model_type": None}, "model_type: is missing"),
    ({"model_type": "qwen2", "vocab_size": 8}, "hidden_size: is missing"),
    ({**OTHER, "num_hidden_layers": None}, "num_hidden_layers: is missing"),
    (
        {**OTHER, "quantization_config": {"quant_method": "gptq"}},
        "quantization_config: the checkpoint is already quant",
    ),
    ({**OTHER, "quantization": {"bits": 4}}, "quantization: the checkpoint is already quantized"),
    ({**OTHER, "vision_config": {"depth": 32}}, "vision_config: a model of several parts, such as text and images"),
    ({**OTHER, "visual": {"layers": 48}}, "visual: a model of several parts"),
    ({**OTHER, "mm_vision_tower": "openai/clip-vit-large-patch14"}, "mm_vision_tower: a model of several parts"),
    ({"model_type": "llava", "text_config": QWEN, "vision_config": {}}, "vision_config: a model of several parts"),
    (
        {**OTHER, "hidden_size": 10**18},
        "hidden_size: must be a whole number from 1 to 1048576, got 1000000000000000000",
    ),
    ({**OTHER, "num_hidden_layers": 100_000}, "num_hidden_layers: must be a whole number from 1 to 1024, got 100000"),
    ({**OTHER, "vocab_size": -1}, "vocab_size: must be a whole number from 1 to 16777216, got -1"),
    ({**OTHER, "vocab_size": "many"}, 'vocab_size: must be a whole number from 1 to 16777216, got "many"'),
    ({**OTHER, "num_experts": 10**9}, "num_experts: must be a whole number from 0 to 8192, got 1000000000"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_a_config_that_cannot_be_traced_is_refused_with_the_key_and_without_a_trace(written, cache, config, says):
    found = recommend(written(config))
    assert (found.outcome, found.can_recommend) == ("outside_domain", 0)
    assert f"config.json: {says}" in found.reason
    assert not cache.exists()


@pytest.mark.torch
@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**OTHER, "model_type": "acme_lm"}, "model_type: transformers .* does not know 'acme_lm'"),
        (
            {**OTHER, "model_type": "acme_lm", "auto_map": {"AutoConfig": "evil.Evil"}},
            "auto_map: model_type 'acme_lm' needs custom code, which is not run",
        ),
    ],
)
def test_what_only_transformers_knows_is_refused_by_the_tracing_process(written, config, says):
    folder = Path(written(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    found = recommend(str(folder))
    assert found.outcome == "outside_domain"
    assert re.search(f"model_name '{folder}': {folder}/config.json: {says}", found.reason)


@pytest.mark.torch
@pytest.mark.slow
def test_a_model_is_traced_once_and_kept(written, cache, capfd):
    small = {**OTHER, "hidden_size": 112, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 512}
    folder = written(small)
    found = recommend(folder)
    assert (found.outcome, found.gpus) == ("ok", 1)
    assert f"autoconf: tracing {folder}/config.json, which takes a minute or two" in capfd.readouterr().err
    (trace,) = (cache / "ado-autoconf" / "models").glob("*.parquet")
    made = trace.stat().st_mtime_ns
    assert recommend(written(small, "copy")).gpus == 1
    assert trace.stat().st_mtime_ns == made
    assert capfd.readouterr().err == ""
