"""Effects of a call on the host process, and answers to many concurrent callers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from autoconf.predictor import registry

ASK = """
from autoconf.min_gpu_recommender import min_gpu_recommender
JOB = dict(model_name="llama-7b", method="lora", gpu_model="NVIDIA-A100-80GB-PCIe", tokens_per_sample=8192,
           batch_size=16, model_version="1.1.0")
"""


def run(code: str, **environment: str) -> str:
    # Variables that scikit-learn set in this process must not hide those set in a fresh one.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env={**clean, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_experiments_imports_neither_autogluon_nor_lightgbm_nor_pandas():
    loaded = run(
        "import sys, ado.modules.actuators.custom_experiments\nbefore = set(sys.modules)\n"
        "import autoconf.min_gpu_recommender, autoconf.experiments\nprint(*(set(sys.modules) - before))"
    ).split()
    heavy = {"autogluon", "lightgbm", "pandas", "sklearn", "torch", "matplotlib", "scipy", "transformers"}
    assert heavy.isdisjoint(name.partition(".")[0] for name in loaded)
    assert {"autoconf.min_gpu_recommender", "autoconf.experiments"} <= {*loaded}


def test_answering_needs_no_torch():
    refuse = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
"""
    assert run(refuse + ASK + "print(min_gpu_recommender(**JOB)['gpus'])") == "2\n"


def test_a_call_changes_nothing_of_the_host_process():
    """Logging, warnings, environment, CPU affinity, working directory: as before, first call included."""
    state = """
import ado.modules.actuators.custom_experiments, logging, os, warnings
def state():
    root = logging.getLogger()
    return (root.level, list(map(repr, root.handlers)), logging.root.manager.disable, list(warnings.filters),
            dict(os.environ), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None, os.getcwd(),
            [logging.getLogger(name).level for name in ("autogluon", "pandas")])
logging.getLogger("autogluon").setLevel(logging.INFO)
before = state()
"""
    check = "min_gpu_recommender(**JOB)\nafter = state()\nfor a, b in zip(before, after): assert a == b, (a, b)"
    run(state + ASK + check)


def test_loading_does_not_tell_where_a_version_was_made(tmp_path):
    """AutoGluon would warn of every difference: whether they matter is checked before."""
    shutil.copytree(registry.MODELS / "1.1.0" / "predictor", tmp_path / "predictor")
    made = json.loads((tmp_path / "predictor" / "metadata.json").read_text())
    elsewhere = {**made, "system": "Plan 9", "version": "1.6.0", "py_version": "3.9", "packages": {}}
    (tmp_path / "predictor" / "metadata.json").write_text(json.dumps(elsewhere))
    (tmp_path / "predictor" / "version.txt").write_text("1.6.0")
    load = """
import logging, sys
from autoconf.predictor.autogluon import load_tabular
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
load_tabular(sys.argv[1], "1.1.0")
"""
    command = [sys.executable, "-c", load, str(tmp_path / "predictor")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_serving_process_holds_at_most_400_mb_more_than_ado():
    before = "import ado.modules.actuators.custom_experiments, psutil\nheld = psutil.Process().memory_info\n"
    before += "ado = held().rss\n"
    serve = "for size in range(1, 101): min_gpu_recommender(**{**JOB, 'batch_size': size})\nprint(held().rss - ado)"
    assert 0 < int(run(before + ASK + serve)) <= 400e6


def test_no_file_is_written_anywhere(tmp_path):
    """An empty home, working directory and folder for temporary files stay empty."""
    folders = [tmp_path / name for name in ("home", "temporary", "here")]
    for folder in folders:
        folder.mkdir()
    environment = {
        "HOME": str(folders[0]), "XDG_CACHE_HOME": str(folders[0] / "cache"), "TMPDIR": str(folders[1]),
        "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(folders[0] / "mpl"),
    }  # fmt: skip
    # ado itself keeps no file for a direct call; Ray is not started.
    answered = run(
        f"import os; os.chdir({str(folders[2])!r})\n" + ASK + "print(min_gpu_recommender(**JOB))", **environment
    )
    assert "'gpus': 2" in answered
    assert [str(p) for folder in folders for p in folder.rglob("*")] == []


MANY = (
    ASK
    + """
import json
from concurrent.futures import ThreadPoolExecutor
from autoconf.predictor import registry
loads, opened = [], registry._open
registry._open = lambda *version: loads.append(version) or opened(*version)
jobs = [{**JOB, "tokens_per_sample": 1024 * (1 + i % 16)} for i in range(64)]
with ThreadPoolExecutor(32) as pool:
    together = list(pool.map(lambda job: min_gpu_recommender(**job), jobs))
print(json.dumps([together == [min_gpu_recommender(**job) for job in jobs], len(loads), together]))
"""
)


def test_threads_and_processes_at_once_from_a_cold_start():
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=600) for process in processes]
    results = [json.loads(out) for out, _ in outputs]
    assert all(same and loads == 1 for same, loads, _ in results)
    assert len({json.dumps(answers) for _, _, answers in results}) == 1
    assert len({json.dumps(answer) for answer in results[0][2]}) > 1


def test_the_version_is_the_installed_distributions():
    root = Path(__file__).parents[2]
    declared = next(line for line in (root / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    assert run("import autoconf; print(autoconf.__version__)").strip() in declared
