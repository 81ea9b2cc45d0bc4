"""Library drift: if the installed libraries differ from the card's, the version is retrained with equal answers.

Runs in every environment of the matrix (tests/matrix.sh); in the environment that the version was made in, the drift is
brought about by a card that names another AutoGluon.
"""

import json
import logging
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autoconf import AutoConfError, Workload, recommend
from autoconf.predictor import autogluon as autogluon_adapter
from autoconf.predictor import cards, registry

VERSION = registry.DEFAULT
JOB = Workload(
    model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192, batch_size=16
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_loaded", {})
    return tmp_path / "cache" / "ado-autoconf"


@pytest.fixture
def drifted(cache, tmp_path, monkeypatch) -> Path:
    """All versions as another AutoGluon would have written them."""
    for version in list(registry.RELEASED):
        shutil.copytree(registry.MODELS / version, tmp_path / "models" / version)
        card = registry.card(version)
        libraries = {**card.libraries, "autogluon.tabular": "0.0.1"}
        content = card.model_copy(update={"libraries": libraries}).model_dump_json().encode()
        (tmp_path / "models" / version / "card.json").write_bytes(content)
        monkeypatch.setitem(registry.RELEASED, version, cards.digest(content))
    monkeypatch.setattr(registry, "MODELS", tmp_path / "models")
    return cache


def test_the_shipped_predictor_is_used_only_where_the_libraries_agree(cache):
    assert recommend(JOB).gpus == 2
    agree = autogluon_adapter.libraries_agree(registry.card(VERSION))
    assert cache.exists() is not agree


@pytest.mark.parametrize("version", registry.RELEASED)
def test_a_version_is_rebuilt_once_with_a_message_and_gives_the_released_answers(drifted, caplog, monkeypatch, version):
    job = JOB.model_copy(update={"model_version": version})
    caplog.set_level(logging.INFO, logger="autogluon")
    assert recommend(job).gpus == 2  # loading compares all check jobs with the released answers
    assert logging.getLogger("autogluon").level == logging.INFO
    assert f"rebuilding predictor {version} for autogluon.tabular" in caplog.text
    rebuilt = [p for p in drifted.iterdir() if p.is_dir()]
    assert len(rebuilt) == 1
    made = (rebuilt[0] / "card.json").stat().st_mtime_ns
    caplog.clear()
    monkeypatch.setattr(registry, "_loaded", {})
    assert recommend(job).gpus == 2
    assert "rebuilding" not in caplog.text
    assert [p for p in drifted.iterdir() if p.is_dir()] == rebuilt
    assert (rebuilt[0] / "card.json").stat().st_mtime_ns == made


def test_a_rebuilt_version_is_used_from_a_read_only_cache(drifted, monkeypatch):
    recommend(JOB)
    before = sorted(drifted.rglob("*"))

    def read_only(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(registry, "_loaded", {})
    # A file system cannot be mounted here, and root may write whatever the permissions say.
    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr("filelock.FileLock", read_only)
    assert recommend(JOB).gpus == 2
    assert sorted(drifted.rglob("*")) == before


def test_neither_a_rebuild_nor_an_answer_opens_a_connection(drifted, monkeypatch):
    def refuse(*address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    assert recommend(JOB).gpus == 2
    assert [p for p in drifted.iterdir() if p.is_dir()]


def test_an_altered_rebuilt_predictor_is_refused(drifted, monkeypatch):
    recommend(JOB)
    (learner,) = drifted.rglob("learner.pkl")
    learner.write_bytes(learner.read_bytes() + b"x")
    monkeypatch.setattr(registry, "_loaded", {})
    with pytest.raises(AutoConfError, match=r"rebuilt: predictor/learner\.pkl was altered"):
        recommend(JOB)


def test_a_cache_that_cannot_be_written_is_an_error_and_leaves_nothing(drifted, tmp_path):
    drifted.parent.mkdir(parents=True, exist_ok=True)
    drifted.write_text("a file where the cache folder should be")
    with pytest.raises(AutoConfError, match=f"version {re.escape(VERSION)}: cannot rebuild it in "):
        recommend(JOB)
    assert drifted.read_text().startswith("a file")


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(drifted):
    """A limit on the size of files simulates a full disk."""
    code = """
import resource, sys
from pathlib import Path
from autoconf import AutoConfError
from autoconf.predictor import registry
registry.MODELS = Path(sys.argv[1])
registry.RELEASED[registry.DEFAULT] = sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    registry.load(registry.DEFAULT)
except AutoConfError as error:
    print(error)
"""
    arguments = [str(registry.MODELS), registry.RELEASED[VERSION]]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600)
    assert f"cannot rebuild it in {drifted}: OSError: [Errno 27] File too large: '{drifted}" in done.stdout, done
    assert [p for p in drifted.iterdir() if p.is_dir()] == []


def test_remains_of_a_killed_rebuild_are_removed_by_the_next_one(drifted):
    """Killed when it has trained: the half-made folder is there, and the lock is free."""
    code = """
import os, signal, sys
from pathlib import Path
from autoconf.predictor import rebuild, registry
registry.MODELS = Path(sys.argv[1])
registry.RELEASED[registry.DEFAULT] = sys.argv[2]
rebuild.check_answers = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
registry.load(registry.DEFAULT)
"""
    arguments = [str(registry.MODELS), registry.RELEASED[VERSION]]
    assert subprocess.run([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL).returncode == -9
    (left,) = (p for p in drifted.iterdir() if p.is_dir())
    assert recommend(JOB).gpus == 2
    (made,) = (p for p in drifted.iterdir() if p.is_dir())
    assert left.name.startswith(f"{made.name}.")


_ASK = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from autoconf import recommend, Workload
from autoconf.predictor import registry
registry.MODELS = Path(sys.argv[1])
registry.RELEASED[registry.DEFAULT] = sys.argv[2]
jobs = [Workload(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe",
                 tokens_per_sample=2048 * (1 + i % 8), batch_size=16) for i in range(32)]
loads = []
opened = registry._open
registry._open = lambda *version: loads.append(version) or opened(*version)
with ThreadPoolExecutor(32) as pool:
    answers = list(pool.map(recommend, jobs))
print(json.dumps({"answers": [[a.can_recommend, a.gpus, a.workers] for a in answers], "loads": len(loads)}))
"""


def test_threads_and_processes_from_a_cold_start_while_a_rebuild_is_needed(drifted, caplog):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ASK, str(registry.MODELS), registry.RELEASED[VERSION]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    results = [json.loads(out) for out, _ in outputs]
    jobs = [JOB.model_copy(update={"tokens_per_sample": 2048 * (1 + i % 8)}) for i in range(32)]
    sequential = [[a.can_recommend, a.gpus, a.workers] for a in map(recommend, jobs)]
    assert len({tuple(answer) for answer in sequential}) > 1
    for result in results:
        assert result == {"answers": sequential, "loads": 1}
    assert sum("rebuilding predictor" in err for _, err in outputs) == 1
