"""Only verified content is unpickled, even if files change in the meantime."""

import os
import pickle
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoconf import AutoConfError, Workload, recommend
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor import integrity, registry
from autoconf.predictor.cards import CARD
from autoconf.predictor.registry import MODELS

VERSION = "1.1.0"
LEARNER = "predictor/learner.pkl"
JOB = Workload(
    model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192, batch_size=16,
    model_version=VERSION,
)  # fmt: skip


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of a version that the package uses instead of the shipped one."""
    shutil.copytree(MODELS / VERSION, tmp_path / "models" / VERSION)
    monkeypatch.setattr(registry, "MODELS", tmp_path / "models")
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    registry._card.cache_clear()
    signal.alarm(120)  # reading a pipe would wait for ever
    yield tmp_path / "models" / VERSION
    signal.alarm(0)
    registry._card.cache_clear()


class _Bomb:
    """Unpickling this proves that unverified content was unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def evil_copy(version: Path) -> Path:
    """The same version with other pickles."""
    evil = version.parent.parent / "evil" / version.name
    if not evil.exists():
        shutil.copytree(version, evil)
        for file in evil.rglob("*.pkl"):
            file.write_bytes(pickle.dumps(_Bomb()))
    return evil


def swap_file(version: Path) -> None:
    shutil.copy(evil_copy(version) / LEARNER, version.parent / "new.pkl")
    os.replace(version.parent / "new.pkl", version / LEARNER)


def swap_folder(version: Path) -> None:
    evil = evil_copy(version)
    (version / "predictor").rename(version / "old")
    (evil / "predictor").rename(version / "predictor")


def swap_version_for_a_link(version: Path) -> None:
    evil = evil_copy(version)
    version.rename(version.parent / "old")
    version.symlink_to(evil)


def overwrite_in_place(version: Path) -> None:
    for file in version.rglob("*.pkl"):
        file.write_bytes(pickle.dumps(_Bomb()))


@pytest.mark.parametrize("swap", [swap_file, swap_folder, swap_version_for_a_link, overwrite_in_place])
def test_files_renamed_during_the_load_are_not_unpickled(copied, monkeypatch, swap: Callable[[Path], None]):
    """The swap comes after the files were verified and before AutoGluon opens the first of them."""
    real = autogluon_adapter._tabular_predictor
    swapped = []

    def swap_then_load():
        if not swapped:
            swapped.append(swap)
            swap(copied)
        return real()

    monkeypatch.setattr(autogluon_adapter, "_tabular_predictor", swap_then_load)
    assert recommend(JOB).gpus == 2
    assert swapped and not Path("unpickled").exists()


def test_a_folder_that_is_renamed_again_and_again_is_loaded_right_or_refused(copied):
    evil, spare, stop = evil_copy(copied) / "predictor", copied.parent / "spare", threading.Event()

    def rename() -> None:
        while not stop.is_set():
            (copied / "predictor").rename(spare)
            evil.rename(copied / "predictor")
            (copied / "predictor").rename(evil)
            spare.rename(copied / "predictor")

    swapper = threading.Thread(target=rename)
    swapper.start()
    outcomes = set()
    try:
        for _ in range(40):
            registry._loaded.clear()
            try:
                outcomes.add(recommend(JOB).gpus)
            except AutoConfError:
                outcomes.add("refused")
    finally:
        stop.set()
        swapper.join()
    assert outcomes <= {2, "refused"} and not Path("unpickled").exists()


def test_the_private_copy_is_for_this_user_only_and_is_removed():
    with integrity.private_copy({"predictor/learner.pkl": b"content"}) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (folder / LEARNER).read_bytes() == b"content"
    assert not folder.exists()


def test_where_no_temporary_folder_can_be_written_the_error_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(integrity, "_TEMPORARY", (str(tmp_path / "gone"), str(tmp_path / "gone too")))
    expected = pytest.raises(AutoConfError, match=r"private copy of the predictor .*gone.*set TMPDIR")
    with expected, integrity.private_copy({}):
        pass


def a_link(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    if path.is_dir():
        path.rename(target)
    elif path.exists():
        shutil.move(path, target)
    path.symlink_to(target)


def a_dangling_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/nowhere")


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root can make a device")


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("make", [a_link, a_dangling_link, a_pipe, a_device, a_folder])
@pytest.mark.parametrize("name", ["extra", "predictor/extra.pkl", LEARNER, "figures.csv", CARD])
def test_nothing_but_regular_files_that_belong_is_accepted(copied, make: Callable[[Path], None], name: str):
    make(copied / name)
    with pytest.raises(AutoConfError, match=rf"version 1\.1\.0: .*{name.rpartition('/')[2]}"):
        recommend(JOB)


def test_a_folder_in_a_version_that_is_a_link_is_refused(copied):
    a_link(copied / "predictor")
    with pytest.raises(AutoConfError, match="predictor is a link"):
        recommend(JOB)


def test_a_deep_folder_that_does_not_belong_is_not_walked(copied):
    folder = copied / "deep"
    for _ in range(1500):  # deeper than Python recurses
        folder.mkdir()
        os.chdir(folder)
        folder = Path("d")
    os.chdir(copied.parent)
    with pytest.raises(AutoConfError, match="deep does not belong to it"):
        recommend(JOB)
    os.system(f"rm -rf {copied / 'deep'}")
