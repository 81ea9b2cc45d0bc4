"""``ado-autoconf versions`` and ``stacks``: what is answered for, and how well."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoconf import versions
from autoconf.commands.common import exit_codes, version_named
from autoconf.errors import BadInput
from autoconf.presets import presets
from autoconf.show import show_models, show_stack, show_summary, show_version
from autoconf.tables import output


def versions_command(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", show_default=False, help="All about one version.")
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="List the models and their other names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the released versions: the models, methods, GPUs and limits that each answers for, and how good it is.

    $ ado-autoconf versions

    $ ado-autoconf versions 1.1.0

    $ ado-autoconf versions 1.1.0 --models
    """
    released, default = versions.RELEASED, versions.DEFAULT
    with exit_codes():
        version = version_named(version)
        if version not in (None, *released):
            raise BadInput(f"VERSION: {version!r} is not released; released versions are {', '.join(released)}")
        cards = [versions.card(one) for one in released if version in (None, one)]
        show = show_models if models else show_version if version else show_summary
        with output(None) as stream:
            if as_json:
                shown = {"version", "created", "domain", "evaluation"}
                listed = [{"default": card.version == default, **card.model_dump(include=shown)} for card in cards]
                stream.write(f"{json.dumps(listed, indent=2, ensure_ascii=False)}\n".encode())
            else:
                for card in cards:
                    show(card, default=card.version == default)


def stacks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the stacks that a job can name: the settings that each comes with, and where these stand.

    $ ado-autoconf stacks
    """
    with exit_codes(), output(None) as stream:
        if as_json:
            stacks = {name: preset.model_dump() for name, preset in presets().items()}
            stream.write(f"{json.dumps(stacks, indent=2, ensure_ascii=False)}\n".encode())
        else:
            for name, preset in presets().items():
                show_stack(name, preset)
