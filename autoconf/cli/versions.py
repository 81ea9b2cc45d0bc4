"""The commands ``ado-autoconf versions`` and ``ado-autoconf stacks``, which list versions and training stacks."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoconf.cli.console import show_models, show_stack, show_summary, show_version
from autoconf.cli.options import exit_codes, note, version_named
from autoconf.cli.output import output
from autoconf.errors import BadInput
from autoconf.jobs.presets import presets
from autoconf.predictor import registry, user_versions


def versions_command(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", show_default=False, help="Show everything about one version.")
    ] = None,
    models: Annotated[bool, typer.Option("--models", help="List the models and their other names.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Accept the current content of your own version, although it has changed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the versions, each with its models, methods, GPUs, limits and evaluation.

    Your own versions are in the folder that AUTOCONF_MODELS names.

    $ ado-autoconf versions

    $ ado-autoconf versions 1.1.0

    $ ado-autoconf versions 1.1.0 --models
    """
    default = registry.DEFAULT
    with exit_codes():
        version = version_named(version)
        if trust:
            _trust(version)
        try:
            cards = [registry.card(one) for one in ([version] if version else registry.known())]
        except ValueError as error:
            raise BadInput(f"VERSION: {error}") from None
        show = show_models if models else show_version if version else show_summary
        with output(None) as stream:
            if as_json:
                shown = {"version", "created", "domain", "evaluation"}
                listed = [{"default": card.version == default, **card.model_dump(include=shown)} for card in cards]
                stream.write(f"{json.dumps(listed, indent=2, ensure_ascii=False)}\n".encode())
            else:
                for card in cards:
                    show(card, default=card.version == default)


def _trust(version: str | None) -> None:
    if version is None or not user_versions.is_own(version):
        raise BadInput("--trust: name the user version to accept, such as 2.0.0+mine")
    folder = user_versions.folder_of()
    if version not in user_versions.listed_in(folder):
        raise BadInput(f"VERSION: {version!r} is not in {folder or f'{user_versions.VARIABLE}, which is not set'}")
    assert folder is not None
    note(f"{version} is accepted: sha256:{user_versions.trust(folder / version)}")


def stacks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List the training stacks that a job can name, with their settings and sources.

    $ ado-autoconf stacks
    """
    with exit_codes(), output(None) as stream:
        if as_json:
            stacks = {name: preset.model_dump() for name, preset in presets().items()}
            stream.write(f"{json.dumps(stacks, indent=2, ensure_ascii=False)}\n".encode())
        else:
            for name, preset in presets().items():
                show_stack(name, preset)
