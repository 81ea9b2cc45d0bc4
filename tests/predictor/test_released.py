"""Shipped versions are the released ones; anything else is refused with an error."""

import json
import pickle
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from autoconf import AutoConfError, Job, Workload, largest_sample, recommend
from autoconf.planner.estimate import estimates
from autoconf.predictor import cards, rebuild, registry
from autoconf.predictor.autogluon import installed_libraries
from autoconf.predictor.cards import CARD
from autoconf.predictor.check_jobs import CHECK_JOBS, candidates
from autoconf.predictor.predictor import Predictor
from autoconf.predictor.registry import MODELS, RELEASED

VERSION = "1.1.0"  # of the fixture ``job``


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of a version that the package uses instead of the shipped one."""
    shutil.copytree(MODELS / VERSION, tmp_path / VERSION)
    monkeypatch.setattr(registry, "MODELS", tmp_path)
    monkeypatch.setattr(registry, "_loaded", {})
    registry._card.cache_clear()
    yield tmp_path / VERSION
    registry._card.cache_clear()


def rewrite_card(folder: Path, **update) -> str:
    """Change a version's card in a valid format; return the digest of the card."""
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **update}))
    return cards.digest((folder / CARD).read_bytes())


@pytest.mark.parametrize("version", RELEASED)
def test_the_shipped_files_are_the_released_ones(version):
    card = cards.verified_card(MODELS / version, RELEASED[version])
    assert card.version == version
    assert len(card.files) == len([p for p in (MODELS / version).rglob("*") if p.is_file()]) - 1


@pytest.mark.parametrize("change", ["altered", "missing", "a link"])
def test_a_version_is_refused_if_the_moments_that_it_continues_were_changed(tmp_path, monkeypatch, change):
    for version in ("2.0.0", "3.0.0"):
        shutil.copytree(MODELS / version, tmp_path / version)
    monkeypatch.setattr(registry, "MODELS", tmp_path)
    monkeypatch.setattr(registry, "_loaded", {})
    (name,) = registry.card("3.0.0").base
    base = tmp_path / name
    content = base.read_bytes()
    base.unlink()
    if change == "altered":
        base.write_bytes(content[:-1] + b"?")
    elif change == "a link":
        base.symlink_to(MODELS / name)
    with pytest.raises(AutoConfError, match=rf"^version 3\.0\.0: .*{name}.*reinstall autoconf-gpus$"):
        registry.load("3.0.0")


@pytest.mark.parametrize("version", RELEASED)
def test_a_version_is_compact(version):
    assert sum(p.stat().st_size for p in (MODELS / version).rglob("*") if p.is_file()) < 8_000_000


@pytest.mark.parametrize("version", RELEASED)
def test_no_path_of_the_machine_that_trained_is_shipped(version):
    for file in (MODELS / version).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(root in content for root in (b"/tmp/", b"/home/", b"/root/", b"/work/")), file


class _Bomb:
    """Unpickling this proves that something was unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def test_an_altered_pickle_is_refused_before_it_is_unpickled(copied, monkeypatch, job):
    monkeypatch.chdir(copied.parent)
    (copied / "predictor" / "learner.pkl").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(AutoConfError, match=r"version 1\.1\.0: predictor/learner\.pkl was altered"):
        recommend(Workload.parse(**job))
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(("field", "value"), [("aliases", ["llama-7b-chat"]), ("max_tokens_per_sample", None)])
def test_an_edited_card_is_refused_before_anything_is_unpickled(copied, monkeypatch, job, field, value):
    monkeypatch.chdir(copied.parent)
    (copied / "predictor" / "learner.pkl").write_bytes(pickle.dumps(_Bomb()))
    domain = json.loads((copied / CARD).read_text())["domain"]
    assert domain["models"]["granite-20b-v2"][field] != value
    domain["models"]["granite-20b-v2"][field] = value
    rewrite_card(copied, domain=domain, files=cards.digests(copied))  # the card agrees with itself
    for question in (Workload.parse(**job), pd.DataFrame([job])):
        with pytest.raises(AutoConfError, match=r"version 1\.1\.0: card\.json was altered"):
            recommend(question)
    with pytest.raises(AutoConfError, match=r"version 1\.1\.0: card\.json was altered"):
        registry.card(VERSION)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("file", ["predictor/predictor.pkl", "figures.csv", "virtual_runs.parquet", "check_jobs.csv"])
def test_a_missing_file_is_named(copied, job, file):
    (copied / file).unlink()
    with pytest.raises(AutoConfError, match=f"version 1.1.0: {file} is missing"):
        recommend(Workload.parse(**job))


def test_an_extra_file_is_named(copied, job):
    (copied / "predictor" / "extra.pkl").write_bytes(b"")
    with pytest.raises(AutoConfError, match=r"predictor/extra\.pkl does not belong to it"):
        recommend(Workload.parse(**job))


def test_a_missing_version_or_card_is_an_error_and_never_an_answer(copied, job):
    (copied / "card.json").unlink()
    with pytest.raises(AutoConfError, match=r"1\.1\.0: cannot read card\.json"):
        recommend(Workload.parse(**job))
    shutil.rmtree(copied)
    with pytest.raises(AutoConfError, match=r"1\.1\.0: cannot read card\.json"):
        recommend(pd.DataFrame([job]))


def test_a_library_that_does_not_import_is_an_error(copied, job, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lightgbm", None)  # what Python itself does for a module that must not import
    with pytest.raises(AutoConfError, match="AutoGluon or LightGBM does not import"):
        recommend(Workload.parse(**job))


@pytest.mark.parametrize("version", RELEASED)
def test_the_predictor_gives_the_released_answers(version):
    predictor = registry.load(version)
    jobs = pd.read_csv(MODELS / version / CHECK_JOBS)
    fits = predictor.fits(candidates(predictor, jobs))
    assert len(jobs) >= 300
    assert set(jobs["fits"]) == {0, 1}
    assert fits.tolist() == jobs["fits"].astype(bool).tolist()


@pytest.mark.parametrize("version", RELEASED)
def test_a_released_version_is_not_checked_again_with_the_libraries_of_its_card(version, monkeypatch, tmp_path):
    """Nor does the check leave a record, so that a container with an empty cache starts as fast."""
    made_with = ("Linux", "x86_64", registry.card(version).libraries)
    if (platform.system(), platform.machine(), installed_libraries()) != made_with:
        pytest.skip("other libraries are installed, with which it is checked once")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rebuild, "check_answers", lambda *_: pytest.fail("checked"))
    registry._open(*registry.place(version))
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_another_format_is_an_error(copied, job, monkeypatch):
    monkeypatch.setitem(RELEASED, VERSION, rewrite_card(copied, threshold="high"))
    with pytest.raises(AutoConfError, match=r"1\.1\.0: cannot read card\.json"):
        recommend(Workload.parse(**job))


def test_other_answers_than_the_released_ones_are_refused(copied, job, monkeypatch):
    checks = pd.read_csv(copied / CHECK_JOBS)
    checks.loc[5, "fits"] = 1 - checks.loc[5, "fits"]
    checks.to_csv(copied / CHECK_JOBS, index=False)
    monkeypatch.setitem(RELEASED, VERSION, rewrite_card(copied, files=cards.digests(copied)))
    with pytest.raises(AutoConfError, match=r"answers 1 of .* check jobs differently"):
        recommend(Workload.parse(**job))


def test_versions_made_from_now_on_never_say_that_a_job_with_negative_headroom_fits():
    released = registry.load("2.0.0")
    step = pd.DataFrame({"headroom_gib": [-1.0, -0.012, -1e-9, 0.0, 1.0], "sharded": 0.0})
    assert released.answers(step).tolist() == [False, True, True, True, True]  # its answers are frozen
    card = released.card.model_copy(update={"least_headroom_gib": 0.0})
    made = Predictor(card, released.memory, released._tabular)
    assert made.answers(step).tolist() == [False, False, False, True, True]


def test_a_job_that_its_negative_headroom_excludes_has_no_probability_of_fitting():
    job = {"model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "model_version": "2.0.0"}
    edge = largest_sample(Job(**job, batch_size=1), number_gpus=1).tokens_per_sample
    columns = {name: [value] for name, value in {**job, "tokens_per_sample": edge, "batch_size": 1}.items()}
    released = registry.load("2.0.0")
    (before,) = estimates(released, {**columns, "number_gpus": [1]})
    assert before.fits and before.headroom_gib < 0  # its answers are frozen
    card = released.card.model_copy(update={"least_headroom_gib": 0.0})
    (found,) = estimates(Predictor(card, released.memory, released._tabular), {**columns, "number_gpus": [1]})
    assert (found.fits, found.probability, found.headroom_gib) == (0, 0.0, before.headroom_gib)
    assert found.reason.startswith("probability 0.00, 0.90 required: training peaks near ")
