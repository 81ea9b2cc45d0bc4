"""The files of a version: verified before they are used, and loaded only when they are needed."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from autoconf import AutoConfError
from autoconf.predictor import autogluon
from autoconf.speed import version
from autoconf.speed.features import MONOTONE
from autoconf.speed.version import DEFAULT, FOLDER, RELEASED, TABLE, load


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the released version, which is read instead."""
    shutil.copytree(FOLDER / DEFAULT, tmp_path / DEFAULT)
    monkeypatch.setattr(version, "FOLDER", tmp_path)
    version._load.cache_clear()
    yield tmp_path / DEFAULT
    version._load.cache_clear()


def test_released_versions_are_complete_and_verified():
    for released in RELEASED:
        assert load(released).card.version == released


@pytest.mark.parametrize("name", ["card.json", "rows.parquet", "predictor/models/LightGBM/model.pkl"])
def test_an_altered_file_is_refused_before_it_is_used(copied, name):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AutoConfError, match=f"throughput {DEFAULT}: .*was altered"):
        load()


def test_a_missing_and_an_added_file_are_refused(copied):
    (copied / "extra.pkl").write_bytes(b"")
    with pytest.raises(AutoConfError, match=r"extra\.pkl does not belong to it"):
        load()
    (copied / "extra.pkl").unlink()
    (copied / TABLE).unlink()
    with pytest.raises(AutoConfError, match=f"{TABLE} is missing"):
        load()


def test_with_other_libraries_the_same_predictor_is_trained_from_the_table(copied, monkeypatch):
    table = pd.read_parquet(copied / TABLE)[list(MONOTONE)]
    shipped = load().corrections(table)
    version._load.cache_clear()
    monkeypatch.setattr(autogluon, "libraries_agree", lambda card: False)
    np.testing.assert_allclose(load().corrections(table), shipped, rtol=1e-9)


def test_queries_about_memory_do_not_load_it():
    code = (
        "import autoconf; from autoconf.speed import version;"
        "job = dict(model_name='llama-7b', method='lora', gpu_model='L40S', tokens_per_sample=512, batch_size=8);"
        "autoconf.recommend(autoconf.Workload(**job)); assert version._load.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
