"""User versions are found in addition to released ones, never replace one, and are the same at every use."""

import json
import os
import shutil
import signal
import subprocess
import sys
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
    # Released versions do not change.
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
    with pytest.raises(AutoConfError, match="AUTOCONF_MODELS does not name a folder"):
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


def test_a_renamed_folder_is_refused_as_another_version(models):
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


def test_without_a_writable_folder_the_error_suggests_a_digest(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    right = digest((models / OWN / CARD).read_bytes())
    with pytest.raises(AutoConfError, match=rf"give it with the version, as 2\.0\.0\+mine@sha256:{right}"):
        recommend(Workload.parse(**JOB, model_version=OWN), models=models)


@pytest.mark.parametrize("name", ["2.0.0+theirs", "2.0.0+", "2.0.0+../2.0.0+mine", "+mine", "2.0.0+mi ne"])
def test_a_missing_version_is_named_with_the_existing_ones(models, name):
    answer = recommend(Workload.parse(**JOB, model_version=name), models=models)
    assert answer.can_recommend == 0
    assert answer.reason == f"model_version {name!r} is not in {models.resolve()}, which has {OWN}"


def test_a_missing_folder_is_no_missing_recommendation(models, tmp_path, monkeypatch):
    job = Workload.parse(**JOB, model_version=OWN)
    with pytest.raises(AutoConfError, match="AUTOCONF_MODELS does not name a folder"):
        recommend(job)
    monkeypatch.setenv(user_versions.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(AutoConfError, match=r"AUTOCONF_MODELS: .*gone' is not a directory"):
        recommend(job)
    assert recommend(Workload.parse(**{**JOB, "model_name": "llama-7b"})).gpus == 2  # which needs none
    with pytest.raises(ValueError, match=r"models: .*gone' is not a directory"):
        recommend(job, models=tmp_path / "gone")


def other_version(models: Path) -> Path:
    """A folder with a different version of the same name."""
    altered(version(models))
    return models


@pytest.mark.parametrize("used_first_by", ["link", "folder"])
def test_a_link_that_leads_elsewhere_after_the_first_use_is_refused(models, tmp_path, used_first_by):
    link, job = tmp_path / "current", Workload.parse(**JOB, model_version=OWN)
    link.symlink_to(models)
    assert recommend(job, models=link if used_first_by == "link" else models).gpus == 2
    assert recommend(job, models=link).gpus == 2
    link.unlink()
    link.symlink_to(other_version(tmp_path / "theirs"))
    with pytest.raises(AutoConfError, match=r"was altered .*--trust"):  # loaded or not
        recommend(job, models=link)
    forget_what_is_loaded()
    with pytest.raises(AutoConfError, match=r"was altered .*--trust"):
        recommend(job, models=link)
    assert recommend(job, models=models).gpus == 2


def test_a_folder_that_becomes_a_link_to_another_after_the_first_use_is_refused(models, tmp_path):
    job = Workload.parse(**JOB, model_version=OWN)
    recommend(job, models=models)
    theirs = other_version(tmp_path / "theirs")
    (models / OWN).rename(tmp_path / "old")
    (models / OWN).symlink_to(theirs / OWN)
    forget_what_is_loaded()
    with pytest.raises(AutoConfError, match="was altered"):
        recommend(job, models=models)


def test_a_new_link_to_a_folder_that_changed_is_refused(models, tmp_path):
    job = Workload.parse(**JOB, model_version=OWN)
    recommend(job, models=models)
    altered(models / OWN)
    forget_what_is_loaded()
    (tmp_path / "new").symlink_to(models)
    with pytest.raises(AutoConfError, match="was altered"):
        recommend(job, models=tmp_path / "new")


@pytest.mark.parametrize("given", ["", "sha256:", "sha256:12", "sha256", " "])
def test_text_after_an_at_sign_must_be_a_digest(models, tmp_path, given):
    answer = recommend(Workload.parse(**JOB, model_version=f"{OWN}@{given}"), models=models)
    assert answer.can_recommend == 0
    assert answer.reason.startswith("model_version: after @ must come sha256: and 64 hexadecimal digits, got ")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        '{"/models/2.0.0+mine": 5}',
        '{"a": null}',
        '{"a": "sha256"}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_file_of_digests_that_is_none_is_an_error_and_stays_as_it_is(models, tmp_path, content):
    file = tmp_path / "data" / "ado-autoconf" / "versions.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(AutoConfError, match=r"cannot read the digests of versions in .*versions\.json"):
        recommend(Workload.parse(**JOB, model_version=OWN), models=models)
    assert file.read_text() == content


def test_a_pipe_in_place_of_the_digests_or_the_card_is_an_error_and_no_hang(models, tmp_path):
    job, file = Workload.parse(**JOB, model_version=OWN), tmp_path / "data" / "ado-autoconf" / "versions.json"
    file.parent.mkdir(parents=True)
    signal.alarm(60)
    try:
        os.mkfifo(file)
        with pytest.raises(AutoConfError, match="is not a regular file"):
            recommend(job, models=models)
        file.unlink()
        (models / OWN / CARD).unlink()
        os.mkfifo(models / OWN / CARD)
        with pytest.raises(AutoConfError, match="is not a regular file"):
            recommend(job, models=models)
    finally:
        signal.alarm(0)


def test_processes_that_note_digests_at_once_lose_none(tmp_path):
    names = [f"2.0.0+mine{index}" for index in range(6)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / CARD).write_text(name)
    code = """
import pathlib, sys
from autoconf.predictor import user_versions
user_versions.place(sys.argv[2], pathlib.Path(sys.argv[1]))
"""
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], env=environment) for name in names]
    assert [process.wait(120) for process in started] == [0] * len(names)
    noted = json.loads((tmp_path / "data" / "ado-autoconf" / "versions.json").read_text())
    assert noted == {str(tmp_path / name): digest(name.encode()) for name in names}


def test_a_full_disk_names_the_file_of_digests_and_leaves_it_as_it_was(tmp_path):
    """A limit on the size of files simulates a full disk."""
    (tmp_path / OWN).mkdir()
    (tmp_path / OWN / CARD).write_text("card")
    folder = tmp_path / "data" / "ado-autoconf"
    folder.mkdir(parents=True)
    before = json.dumps({f"/models/{index}": "0" * 64 for index in range(100)})
    (folder / "versions.json").write_text(before)
    code = """
import pathlib, resource, sys
from autoconf.errors import AutoConfError
from autoconf.predictor import user_versions
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    user_versions.place(sys.argv[2], pathlib.Path(sys.argv[1]))
except AutoConfError as error:
    print(error)
"""
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), OWN], env=environment, capture_output=True, text=True, timeout=600
    )
    assert f"cannot keep its digest in {folder / 'versions.json'}: File too large" in done.stdout, done
    assert (folder / "versions.json").read_text() == before
    assert {path.name for path in folder.iterdir()} <= {"versions.json", "versions.json.lock"}


def test_damage_that_trust_cannot_fix_must_be_restored(models):
    (models / OWN / "notes.txt").write_text("mine")
    with pytest.raises(AutoConfError, match=r"notes\.txt does not belong to it .*; restore its files, or "):
        recommend(Workload.parse(**JOB, model_version=OWN), models=models)
