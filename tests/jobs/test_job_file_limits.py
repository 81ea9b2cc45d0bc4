"""Any job file of up to 1 MiB is read or refused within 2 s of CPU time and 300 MB; a larger one is refused."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from yaml_bombs import BOMBS

MIB = 1 << 20
DATA = Path(__file__).parents[1] / "data"
MANIFEST = (DATA / "job_files" / "pytorchjob.yaml").read_text()
ZEROS = json.dumps([0] * 300_000)
SCRIPTS = {
    "doubling variables": (DATA / "job_cases" / "doubling.sh").read_text(),
    "an open quotation": "echo don't\n" + "echo step\n" * 100_000,
    "open substitutions": "echo " + "$(" * 300_000,
    "open arithmetic": "A=$((" + "(" * 300_000,
    "open expansions": "A=" + "${A:-" * 150_000,
    "open backticks": "echo " + "`a " * 300_000,
    "open groups": "( " * 300_000,
    "open conditions": "if true; then\n" * 60_000,
    "an open here-document": "cat > a.yaml <<EOF\n" + "a: 1\n" * 150_000,
    "many here-documents": "cat > a.yaml <<EOF\na: 1\nEOF\n" * 20_000,
    "many commands": "trl sft --optim sgd\n" * 40_000,
    "many lines": "echo step\n" * 100_000,
    "many options": "trl sft " + "--optim sgd " * 80_000,
    "many unknown options": "trl sft " + " ".join(f"--o{i} {i}" for i in range(60_000)),
    "many variables": "\n".join(f"A{i}=$A{i - 1}x" for i in range(50_000)) + "\ntrl sft --optim $A49999",
    "many appends": "A+=x\n" * 150_000 + "trl sft --optim $A",
    "many words in a variable": "A='" + "--optim sgd " * 80_000 + "'\ntrl sft $A $A $A",
    "many continued lines": "trl sft " + "\\\n" * 300_000 + "--optim sgd",
    "many backslashes": "trl sft --optim " + "\\" * 900_000,
    "braces": "trl sft --optim " + "{a,b}" * 150_000,
    "a long name": f"trl sft --config {'a' * 5000}.yaml",
    "a long path": f"accelerate launch --config_file {'a/' * 200_000}b.yaml sft.py --model_name_or_path m",
    "a long option": f"trl sft --{'a' * 900_000} sgd",
    "a long word": "trl sft --optim " + "a" * 900_000,
    "comments": "# an old run   \n" * 30 + "source env.sh\n",
    "many comments": "# a # b\n" * 120_000,
    "options of a script": "trl sft " + " ".join(f"--o{i} {i}" for i in range(9_000)),
    "assignments of Python": "import trl\n" + "a = 1\n" * 21_500,
    "calls of Python": "import trl\n" + "f(a=b)\n" * 18_500,
    "parentheses of Python": "import trl\nx = " + "(" * 130_000,
    "signs of Python": "import trl\nx = " + "-" * 130_000 + "1",
    "attributes of Python": "import trl\nx = a" + ".b" * 65_000,
    "sums of Python": "import trl\nx = " + "+".join("1" * 65_000) + "\nTrainer(SFTConfig(max_length=x))",
    "nested shells": "bash -c " * 100_000 + "ls",
}
SETTINGS = {
    "a notebook": json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": ["a = 1\n"] * 48}] * 400}),
    "60,000 keys": "\n".join(f"k{i}: {i}" for i in range(60_000)),
    "unknown keys": "model_name_or_path: m\n" + "\n".join(f"key{i}: {i}" for i in range(9_990)),
    "long keys": "model_name_or_path: m\n" + "\n".join(f"{'k' * 100}{i}: {i}" for i in range(9_000)),
    "a list for a word": "model_name_or_path: m\noptim: [" + ", ".join(["a" * 50] * 19_000) + "]",
    "a long name of a model": "model_name_or_path: " + "a" * 900_000,
    "options of a manifest": MANIFEST.replace("--nnodes=4", "--nnodes=4, " * 18_000),
    "a command of a manifest": MANIFEST.replace("tuning/sft_trainer.py", "'" + "--nproc_per_node=8 " * 50_000 + "'"),
    "spaces of a manifest": MANIFEST.replace("tuning/sft_trainer.py", "'--nproc_per_node" + " " * 900_000 + "'"),
    "names in a manifest": MANIFEST.replace("tuning/sft_trainer.py", "GPUS_" * 200_000),
    "a ConfigMap": f"{MANIFEST}---\napiVersion: v1\nkind: ConfigMap\ndata: {{config.json: '{ZEROS}'}}",
}
CODE = """
import resource, sys, time
from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, patch_files
from autoconf.jobs.importers.reader import read_job
used = int(time.process_time()) + 3
resource.setrlimit(resource.RLIMIT_CPU, (used, used))
for call in (lambda: read_job([sys.argv[1]], {}), lambda: patch_files([sys.argv[1]], Layout(1, 1))):
    start = time.process_time()
    try:
        call()
    except BadInput as error:
        assert len(str(error)) < 2000, len(str(error))
    assert time.process_time() - start < 2, time.process_time() - start
# The peak of this process alone: ru_maxrss begins with that of the process it was forked from.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def check(tmp_path: Path, text: str) -> None:
    assert len(text.encode()) <= MIB
    (tmp_path / "job").write_text(text)
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))  # noqa: E731
    command = [sys.executable, "-c", CODE, str(tmp_path / "job")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 300 << 10


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS | BOMBS)
def test_settings_are_read_or_refused_in_time(tmp_path: Path, name: str) -> None:
    check(tmp_path, (SETTINGS | BOMBS)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_read_or_refused_in_time(tmp_path: Path, name: str) -> None:
    check(tmp_path, SCRIPTS[name])
