"""The releases that a file installs, which decide defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from autoconf.jobs.importers.evidence import Command
from autoconf.jobs.importers.key_table import Place, Setting

_COMMENT = re.compile(r'[\s",\[]*#')  # also in a cell of a notebook, which is JSON
_PIN = re.compile(r"(?<![\w.-])(transformers|trl) ?== ?(\d+)\.(\d+)")
_Release = tuple[int, int]
_TRANSFORMERS_5: _Release = (5, 0)
_KEEPS_LOGITS: tuple[_Release, _Release] = ((0, 19), (1, 6))
_CHECKPOINTS: _Release = (0, 22)


def older_releases(text: str) -> tuple[str, ...]:
    """The frameworks of ``job_keys.yaml`` for the releases of transformers and TRL that a text installs.

    trl v0.18.2, sft_config.py, has the defaults of v0.15.2; v0.19.0 computes in bfloat16.

    >>> older_releases('!pip install "transformers==4.57.3" trl==0.12.1')
    ('transformers before 5', 'trl before 1.0', 'peft-sft before 1.0')
    >>> older_releases("# pip install trl==0.12.1"), older_releases("pip install trl==1.9.0")
    ((), ())
    """
    found = []
    if (releases := _installed(text, "transformers")) and max(releases) < _TRANSFORMERS_5:
        found.append("transformers before 5")
    if (releases := _installed(text, "trl")) and max(releases) < _KEEPS_LOGITS[0]:
        found += ["trl before 1.0", "peft-sft before 1.0"]
    return tuple(found)


def defaults_of_release(
    text: str, path: str, settings: Sequence[Setting], commands: Sequence[Command]
) -> Iterator[Setting]:
    """What an SFTTrainer from 0.19 to 1.5 that a text installs does otherwise than later ones.

    trl v0.21.0 and v1.5.1, sft_config.py: no gradient_checkpointing before 0.22, loss_type nll before 1.6.
    """
    releases = _installed(text, "trl")
    trains = "SFTTrainer" in text and any(command.framework == "trl" for command in commands)
    first, behind = _KEEPS_LOGITS
    if not (releases and trains and first <= min(releases) and max(releases) < behind):
        return
    given = {setting.key for setting in settings}
    place = Place(path, None, f"trl=={'.'.join(map(str, max(releases)))}")
    if "loss_type" not in given:
        yield Setting(place, "arguments", "loss_type", "nll")
    if "gradient_checkpointing" not in given and max(releases) < _CHECKPOINTS:
        yield Setting(place, "arguments", "gradient_checkpointing", False)


def _installed(text: str, package: str) -> list[_Release]:
    lines = (line for line in text.split("\n") if package in line and not _COMMENT.match(line))
    found = (pin for line in lines for pin in _PIN.findall(line) if pin[0] == package)
    return [(int(major), int(minor)) for _, major, minor in found]
