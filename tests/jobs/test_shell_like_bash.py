"""Each script of tests/data/bash gives the words that bash itself gives, or words that say what is not known."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from autoconf.errors import BadInput
from autoconf.jobs.importers.shell import follow
from autoconf.jobs.importers.words import is_unknown

SCRIPTS = (Path(__file__).parents[1] / "data" / "bash" / "scripts.txt").read_text().rstrip("\n").split("\n%%\n")
BASH = shutil.which("bash")
WRITES_ITS_WORDS = """#!/bin/bash
{ printf '%s\\x01' trl "$@"; printf '\\x02'; } >> "$WORDS"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / "trl"
    path.write_text(WRITES_ITS_WORDS)
    path.chmod(0o755)
    return path


def words_of_bash(script: str, program: Path, tmp_path: Path) -> list[list[str]]:
    words = tmp_path / "words"
    words.touch()
    environment = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "WORDS": str(words)}
    subprocess.run(
        [str(BASH), "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=20,
        check=False,
    )
    return [command.split("\x01")[:-1] for command in words.read_text().split("\x02")[:-1]]


@pytest.mark.skipif(BASH is None, reason="bash itself says what is right")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_words_are_those_of_bash_or_unknown(script: str, program: Path, tmp_path: Path) -> None:
    try:
        found = [command.words for command in follow(script, "run.sh", {}).commands if command.words[0] == "trl"]
    except BadInput:
        return
    if not any(is_unknown(word) for words in found for word in words):
        assert found == words_of_bash(script, program, tmp_path)
