"""The content of a clone of this repository."""

import os
import subprocess
from pathlib import Path

from autoconf.predictor.cards import verified_card
from autoconf.predictor.registry import MODELS, RELEASED

ROOT = Path(__file__).parents[2]


def test_a_clone_by_a_git_that_converts_line_ends_is_whole(tmp_path):
    settings = tmp_path / "gitconfig"
    settings.write_text("[core]\n\tautocrlf = true\n[safe]\n\tdirectory = *\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", str(ROOT), str(clone)],
        check=True,
        env={**environment, "GIT_CONFIG_GLOBAL": str(settings)},
    )
    for version, digest in RELEASED.items():
        assert verified_card(clone / MODELS.relative_to(ROOT) / version, digest).version == version
    for script in (".ci/run", "Makefile", "tests/matrix.sh", "autoconf/cli/main.py"):
        assert b"\r" not in (clone / script).read_bytes()
