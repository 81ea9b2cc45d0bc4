"""The releases that a file installs, which decide defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from autoconf.jobs.importers.evidence import Command
from autoconf.jobs.importers.key_table import Place, Setting

_COMMENT = re.compile(r'[\s",\[]*#')  # also in a cell of a notebook, which is JSON
_PIN = re.compile(r"(?<![\w.-])(transformers|trl) ?== ?(\d+)\.(\d+)(?:\.(\d+))?")
_Release = tuple[int, ...]
_TRANSFORMERS_5: _Release = (5, 0)
_KEEPS_LOGITS: tuple[_Release, _Release] = ((0, 19), (1, 6))
_CHECKPOINTS: _Release = (0, 22)
_CASTS_ADAPTERS: tuple[_Release, _Release] = ((0, 7, 5), (0, 9))


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
    """What a trainer of TRL that a text installs does otherwise than later ones.

    trl v0.7.5 to v0.8.6, trainer/utils.py, peft_module_casting_to_bf16: adapters on a 4-bit base too.
    trl v0.21.0 and v1.5.1, sft_config.py: no gradient_checkpointing before 0.22, loss_type nll before 1.6.
    """
    releases = _installed(text, "trl")
    if not releases:
        return

    def are_in(first: _Release, behind: _Release) -> bool:
        return first <= min(releases) and max(releases) < behind

    given = {setting.key for setting in settings}
    place = Place(path, None, f"trl=={'.'.join(map(str, max(releases)))}")
    if "load_in_4bit" in given and are_in(*_CASTS_ADAPTERS):
        yield Setting(place, "arguments", "cast_adapters", "of_quantized")
    trains = "SFTTrainer" in text and any(command.framework == "trl" for command in commands)
    if not (trains and are_in(*_KEEPS_LOGITS)):
        return
    if "loss_type" not in given:
        yield Setting(place, "arguments", "loss_type", "nll")
    if "gradient_checkpointing" not in given and max(releases) < _CHECKPOINTS:
        yield Setting(place, "arguments", "gradient_checkpointing", False)


def _installed(text: str, package: str) -> list[_Release]:
    lines = (line for line in text.split("\n") if package in line and not _COMMENT.match(line))
    found = (pin for line in lines for pin in _PIN.findall(line) if pin[0] == package)
    return [tuple(int(part) for part in parts if part) for _, *parts in found]
