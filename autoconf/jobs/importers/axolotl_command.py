"""The command ``axolotl train`` with options for its launcher, as the command that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from autoconf.jobs.importers.launch_options import key_of

_OF_LAUNCHER = ("num_processes", "main_process_port")  # which older releases took among their own options


def axolotl_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The program and the words of what ``axolotl train`` runs (axolotl v0.18.0, src/axolotl/cli/utils/train.py).

    >>> axolotl_command("train a.yaml --launcher torchrun --lora-r 8 -- --nproc_per_node=4".split())
    ('torchrun', ['--nproc_per_node=4', '-m', 'axolotl.cli.train', 'a.yaml', '--lora-r', '8'])
    >>> axolotl_command(["train", "a.yaml", "--lora-r", "8"])
    ('axolotl', ['train', 'a.yaml', '--lora-r', '8'])
    """
    own, dashes, of_launcher = list(words), "--" in words, list[str]()
    if dashes:
        own, of_launcher = own[: own.index("--")], own[own.index("--") + 1 :]
    launcher, rest, given = "accelerate", list[str](), list[str]()
    i = 0
    while i < len(own):
        name, equals, value = own[i].partition("=")
        taken = own[i : i + 1] if equals else own[i : i + 2]
        if own[i].startswith("-") and key_of(name) == "launcher":
            launcher = value or taken[-1]
        elif own[i].startswith("-") and key_of(name) in _OF_LAUNCHER:
            given += taken
        else:
            taken = own[i : i + 1]
            rest += taken
        i += len(taken)
    if len(rest) == len(own) and not dashes:
        return "axolotl", rest
    launched = {"accelerate": "accelerate-launch"}.get(launcher, launcher)
    return launched, [*given, *of_launcher, "-m", "axolotl.cli.train", *rest[1:]]
