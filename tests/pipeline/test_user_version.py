"""``ado-autoconf train`` makes a user version from a released version or from another user version."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from autoconf import Workload, files, recommend, throughput
from autoconf.cli.main import app
from autoconf.memory.store import ModelsTable, write_models
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.release import version_folder
from autoconf.pipeline.tracing.trace_file import write_trace
from autoconf.predictor import cards, rebuild, registry, user_versions

BASE, OWN = "2.0.0+small", "2.0.0+mine"
JOB = {"method": "lora", "gpu_model": "L40S", "tokens_per_sample": 4096, "batch_size": 8, "model_version": OWN}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a version of two models, so that tests take only seconds, and a trace of a third model."""
    folder = tmp_path_factory.mktemp("made")
    released = registry.card("2.0.0")
    table = ModelsTable.read(registry.MODELS / "2.0.0")
    names = ["qwen2.5-0.5b", "llama-7b"]
    domain = released.domain.model_copy(update={"models": {name: released.domain.models[name] for name in names}})
    card = released.model_copy(update={"version": BASE, "domain": domain, "evaluation": {}})
    with files.atomic_folder(folder / "models" / BASE) as scratch:
        write_models([table.figures(name) for name in names], scratch)
        runs = pd.read_parquet(registry.MODELS / "2.0.0" / rebuild.TRAINING_TABLE)
        version_folder.complete(scratch, card, runs)
    architecture = architectures()["mistral-7b-v0.1"].model_copy(
        update={"name": "my-model", "aliases": ["me/My-Model"], "later_aliases": []}
    )
    with (folder / "my-model.traces.parquet").open("wb") as stream:
        write_trace(architecture, replace(table.figures("mistral-7b-v0.1"), model_name="my-model"), stream)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(user_versions.VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr(registry, "_loaded", {})
    registry._card.cache_clear()
    return tmp_path


def train(*options):
    return CliRunner().invoke(app, ["train", "--from", BASE, *map(str, options)])


def test_a_traced_model_is_supported_in_addition_to_the_others(place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    done = train("--traces", "my-model.traces.parquet", "--version", OWN, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    checked = rebuild.cache_folder() / "checked" / rebuild.checked_with(found["sha256"])
    assert checked.exists()  # before the first job, which does not wait for it
    assert (found["version"], found["models"]) == (OWN, 3)
    for name, like in (("my-model", "mistral-7b-v0.1"), ("me/my-model", "mistral-7b-v0.1"), ("llama-7b", "llama-7b")):
        own = recommend(Workload.parse(**JOB, model_name=name))
        released = recommend(Workload.parse(**{**JOB, "model_version": "2.0.0"}, model_name=like))
        assert own.can_recommend and own == released
        own, released = (
            throughput(Workload.parse(**{**JOB, "model_version": version}, model_name=model), 4)
            for version, model in ((OWN, name), ("2.0.0", like))
        )
        assert own.tokens_per_second == pytest.approx(released.tokens_per_second)
    card = registry.card(OWN)
    assert (
        card.domain.models["my-model"].config["model_type"] == "mistral" and not card.domain.models["llama-7b"].config
    )
    assert set(card.made_from) == {BASE, "my-model.traces.parquet"}
    assert card.evaluation["figures"] and card.evaluation["orderings"] and card.evaluation["by_family"]
    assert cards.verified_card(place / "models" / OWN, found["sha256"]) == card


def test_measured_throughput_changes_the_speed_and_not_the_memory(place):
    """Thirty runs of a cluster on which everything takes twice as long as on those of the public rows."""
    runs = pd.DataFrame(
        {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "batch_size": 8, "number_gpus": gpus,
         "tokens_per_sample": tokens}
        for gpus in (1, 2, 4) for tokens in range(256, 2816, 256)
    )  # fmt: skip
    own, small = ({"model_version": version, "batch_size": 8} for version in (OWN, BASE))
    before = throughput(runs, model_version=BASE)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, len(runs)))
    runs.assign(tokens_per_second=before["tokens_per_second"] * noise / 2).to_csv("runs.csv", index=False)
    done = train("--measured", "runs.csv", "--version", OWN, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["learned of throughput"]["what was learned"].startswith("adopted; ") and "learned" not in found
    assert {row["rows of throughput"]: row["count"] for row in found["throughput"]}["used"] == 30
    card = cards.verified_card(place / "models" / OWN, found["sha256"])
    assert card.cluster_speed.rows == 30 and card.reserve == registry.card(BASE).reserve
    after = throughput(runs, model_version=OWN)
    assert (after["tokens_per_second"] / before["tokens_per_second"]).between(0.45, 0.55).all()
    job = {"model_name": "llama-7b", "method": "lora", "gpu_model": "L40S", "tokens_per_sample": 4096}
    layouts = [recommend(Workload.parse(**job, **version)) for version in (own, small)]
    assert layouts[0] == layouts[1]


@pytest.mark.slow  # trains twice
def test_the_same_input_gives_the_same_version(place):
    digests = []
    for folder in ("one", "another"):
        done = train("--traces", "my-model.traces.parquet", "--version", OWN, "--output", folder, "--json")
        digests.append(json.loads(done.stdout)["sha256"])
    assert digests[0] == digests[1]


def test_a_shell_may_expand_the_traces(place):
    shutil.copy("my-model.traces.parquet", "my-model.copy")
    done = train("--version", OWN, "--traces", "my-model.copy", "my-model.traces.parquet")
    assert done.exit_code == 2
    assert "my-model.traces.parquet: its model has the name 'my-model', as does my-model" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--version", OWN], f"nothing to add to version {BASE}: give --traces, --measured or both"),
        (["--traces", "my-model.traces.parquet"], "--version: is required"),
        (["--traces", "my-model.traces.parquet", "--version", "2.0.1"], "--version: must be 2.0.0+ and a name"),
        (["--traces", "my-model.traces.parquet", "--version", "3.0.0+mine"], "--version: must be 2.0.0+ and a name"),
        (["--traces", "my-model.traces.parquet", "--version", "2.0.0+../mine"], "--version: must be 2.0.0+ and a name"),
        (["--traces", "my-model.traces.parquet", "--version", BASE], "exists already; choose another --version"),
        (["--traces", "none", "--version", OWN], "none: cannot read it: No such file or directory"),
        (["--measured", "none.csv", "--version", OWN], "none.csv: cannot read it: No such file or directory"),
        (["--from", "1.1.0", "--measured", "runs.csv", "--version", "1.1.0+mine"], "--from: version 1.1.0 supports"),
        (["--from", "9.0.0", "--measured", "runs.csv", "--version", "9.0.0+mine"], "--from: model_version '9.0.0' is"),
    ],
)
def test_an_invalid_version_is_refused_and_leaves_nothing(place, options, message):
    done = train(*options)
    assert done.exit_code == 2
    assert message in done.output
    assert os.listdir("models") == [BASE]


def test_a_folder_that_cannot_be_written_to_is_named(place):
    (place / "file").write_text("")
    done = train("--traces", "my-model.traces.parquet", "--version", OWN, "--output", "file/models")
    assert (done.exit_code, done.output) == (2, "file/models: cannot write to it: Not a directory\n")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_training_leaves_no_version(place, ending):
    command = [str(Path(sys.executable).with_name("ado-autoconf")), "train", "--from", BASE, "--version", OWN]
    process = subprocess.Popen([*command, "--traces", "my-model.traces.parquet"], stdout=subprocess.DEVNULL)
    models = place / "models"
    while not list(models.glob(".*.tmp/predictor*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(ending)
    assert process.wait() == -ending
    assert user_versions.listed_in(models) == [BASE]
    if ending != signal.SIGKILL:
        assert os.listdir(models) == [BASE]


def test_a_full_disk_is_an_error_that_names_the_version_and_leaves_nothing(place):
    """The limit on the size of files acts as a full disk."""
    code = """
import resource, sys
from typer.testing import CliRunner
from autoconf.cli.main import app
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
done = CliRunner().invoke(app, ["train", *sys.argv[1:]])
print(done.exit_code, done.stderr)
"""
    options = ["--from", BASE, "--traces", "my-model.traces.parquet", "--version", OWN, "--output", str(place / "made")]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *options], capture_output=True, text=True)
    assert done.stdout.strip() == f"1 {place / 'made' / OWN}: writing failed: File too large", done.stderr[-2000:]
    assert not [*(place / "made").iterdir()]
