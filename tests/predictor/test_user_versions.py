"""Versions of a user's own: found beside the shipped ones, never in their place, and the same at every use."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from autoconf import AutoConfError, Workload, estimate, recommend
from autoconf.cli.main import app
from autoconf.experiments import largest_batch_recommender
from autoconf.min_gpu_recommender import min_gpu_recommender
from autoconf.predictor import registry, user_versions
from autoconf.predictor.cards import CARD, digest

OWN = "2.0.0+mine"
JOB = {
    "model_name": "my-llama",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with a version that differs from 2.0.0 in one name: there, llama-7b is my-llama."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(user_versions.VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_loaded", {})
    registry._card.cache_clear()
    yield version(tmp_path / "models").parent
    registry._card.cache_clear()


def version(models: Path, name: str = OWN, **changes) -> Path:
    folder = models / name
    shutil.copytree(registry.MODELS / "2.0.0", folder)
    content = json.loads((folder / CARD).read_text())
    aliases = content["domain"]["models"]["llama-7b"]["aliases"]
    content["domain"]["models"]["llama-7b"]["aliases"] = [*aliases, "my-llama"]
    (folder / CARD).write_text(
        json.dumps({**content, "version": name, "created": "", "made_from": {"2.0.0": "x"}, **changes})
    )
    return folder


def altered(folder: Path) -> str:
    """Make a version another one whose card agrees with its files; returns the digest of the card."""
    content = json.loads((folder / CARD).read_text())
    content["evaluation"] = {"jobs": 1}
    (folder / CARD).write_text(json.dumps(content))
    return digest((folder / CARD).read_bytes())


def forget_what_is_loaded():
    registry._loaded.clear()
    registry._card.cache_clear()


def test_a_version_answers_by_argument_and_by_environment(models, monkeypatch):
    job = Workload.parse(**JOB, model_version=OWN)
    assert recommend(job, models=models).gpus == 2
    assert estimate(job, 2, models=models).fits == 1
    table = pd.DataFrame([JOB, {**JOB, "model_name": "llama-7b"}])
    assert recommend(table, OWN, models)["gpus"].tolist() == [2, 2]
    monkeypatch.setenv(user_versions.VARIABLE, str(models))
    assert recommend(job).gpus == 2
    # Nothing changes for the shipped ones beside it.
    assert "is not in the domain" in recommend(Workload.parse(**JOB)).reason


def test_experiments_take_the_folder_from_python(models):
    assert min_gpu_recommender(**JOB, model_version=OWN, models=models) == {
        "can_recommend": 1,
        "gpus": 2,
        "workers": 1,
        "outcome": "ok",
    }
    job = {field: value for field, value in JOB.items() if field != "batch_size"}
    found = largest_batch_recommender(**job, number_gpus=2, model_version=OWN, models=models)
    assert found == largest_batch_recommender(**{**job, "model_name": "llama-7b"}, number_gpus=2, model_version="2.0.0")
    with pytest.raises(AutoConfError, match="AUTOCONF_MODELS names no folder"):
        min_gpu_recommender(**JOB, model_version=OWN)


def test_the_command_lists_and_asks_it(models, monkeypatch):
    monkeypatch.setenv(user_versions.VARIABLE, str(models))
    listed = CliRunner().invoke(app, ["versions"])
    assert f"version {OWN}, made from 2.0.0: 92 models" in listed.stdout
    options = [word for field, value in JOB.items() for word in (f"--{field.replace('_', '-')}", str(value))]
    answered = CliRunner().invoke(app, ["recommend", *options, "--model-version", OWN, "--json"])
    assert json.loads(answered.stdout)["gpus"] == 2


def test_a_shipped_number_cannot_be_shadowed(models):
    version(models, "2.0.0", threshold=0.0)  # which would say that everything fits
    job = Workload.parse(**{**JOB, "model_name": "llama-7b", "model_version": "2.0.0", "max_gpus": 1})
    assert recommend(job, models=models).can_recommend == 0
    assert registry.known(models) == [*registry.RELEASED, OWN]


def test_a_folder_that_was_renamed_is_no_other_version(models):
    (models / OWN).rename(models / "2.0.0+theirs")
    with pytest.raises(AutoConfError, match=r"version 2\.0\.0\+theirs: its card is that of version 2\.0\.0\+mine"):
        recommend(Workload.parse(**JOB, model_version="2.0.0+theirs"), models=models)


def test_its_digest_is_kept_at_the_first_use(models, monkeypatch):
    job = Workload.parse(**JOB, model_version=OWN)
    recommend(job, models=models)
    changed = altered(models / OWN)
    forget_what_is_loaded()
    with pytest.raises(AutoConfError, match=rf"{CARD} was altered .*ado-autoconf versions 2\.0\.0\+mine --trust"):
        recommend(job, models=models)
    monkeypatch.setenv(user_versions.VARIABLE, str(models))
    trusted = CliRunner().invoke(app, ["versions", OWN, "--trust"])
    assert trusted.exit_code == 0 and changed in trusted.stderr
    forget_what_is_loaded()
    assert recommend(job).gpus == 2


def test_an_altered_file_is_not_loaded(models):
    recommend(Workload.parse(**JOB, model_version=OWN), models=models)
    with (models / OWN / "check_jobs.csv").open("a") as file:
        file.write("\n")
    forget_what_is_loaded()
    with pytest.raises(AutoConfError, match=r"check_jobs.csv was altered"):
        recommend(Workload.parse(**JOB, model_version=OWN), models=models)


def test_a_digest_may_be_given_with_the_version(models, tmp_path):
    right = digest((models / OWN / CARD).read_bytes())
    assert recommend(Workload.parse(**JOB, model_version=f"{OWN}@sha256:{right}"), models=models).gpus == 2
    assert not (tmp_path / "data").exists()  # then nothing has to be kept
    with pytest.raises(AutoConfError, match="was altered"):
        recommend(Workload.parse(**JOB, model_version=f"{OWN}@sha256:{'0' * 64}"), models=models)
    answer = recommend(Workload.parse(**JOB, model_version=f"{OWN}@md5:1"), models=models)
    assert answer.reason == "model_version: after @ must come sha256: and 64 hexadecimal digits, got 'md5:1'"


def test_where_nothing_can_be_kept_the_digest_is_asked_for(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    right = digest((models / OWN / CARD).read_bytes())
    with pytest.raises(AutoConfError, match=rf"give it with the version, as 2\.0\.0\+mine@sha256:{right}"):
        recommend(Workload.parse(**JOB, model_version=OWN), models=models)


@pytest.mark.parametrize("name", ["2.0.0+theirs", "2.0.0+", "2.0.0+../2.0.0+mine", "+mine", "2.0.0+mi ne"])
def test_what_is_not_in_the_folder_is_named_with_what_is(models, name):
    answer = recommend(Workload.parse(**JOB, model_version=name), models=models)
    assert answer.can_recommend == 0
    assert answer.reason == f"model_version {name!r} is not in {models.resolve()}, which has {OWN}"


def test_a_missing_folder_is_no_missing_recommendation(models, tmp_path, monkeypatch):
    job = Workload.parse(**JOB, model_version=OWN)
    with pytest.raises(AutoConfError, match="AUTOCONF_MODELS names no folder"):
        recommend(job)
    monkeypatch.setenv(user_versions.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(AutoConfError, match=r"AUTOCONF_MODELS: .*gone' is no folder"):
        recommend(job)
    assert recommend(Workload.parse(**{**JOB, "model_name": "llama-7b"})).gpus == 2  # which needs none
    with pytest.raises(ValueError, match=r"models: .*gone' is no folder"):
        recommend(job, models=tmp_path / "gone")
