"""The error if another distribution with the same package name is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoconf.distribution import CLASHING, NAME, __version__

_ASK = (
    "import autoconf; print(autoconf.recommend(autoconf.Workload(model_name='llama-7b', method='lora', "
    "gpu_model='L40S', tokens_per_sample=512, batch_size=1)))"
)
MESSAGE = f"two installed distributions have a package named autoconf: {NAME} {__version__} and {CLASHING} 9.8.7"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with the metadata of another distribution of that name."""
    metadata = tmp_path / "ado_autoconf-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {CLASHING}\nVersion: 9.8.7\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_the_command_names_both_distributions(environment):
    command = Path(sys.executable).with_name("ado-autoconf")
    done = subprocess.run([command, "versions"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.startswith(f"ado-autoconf: {MESSAGE}")
    assert f"pip uninstall {CLASHING} {NAME}" in done.stderr


def test_a_question_from_python_is_an_error_and_not_a_recommendation(environment):
    done = subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"autoconf.errors.AutoConfError: {MESSAGE}" in done.stderr


def test_the_wheel_does_not_have_the_name_of_another_project(environment):
    assert NAME != CLASHING and (Path(__file__).parents[2] / "pyproject.toml").read_text().count(f'"{NAME}"') == 1
