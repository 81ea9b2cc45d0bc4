"""The command ``ado-autoconf``."""

import sys
from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from autoconf.cli.main import app

__all__ = ["app", "run"]

__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={"main": ["app"]})


def run() -> None:
    """Run the command, unless another distribution may have overwritten files of this package."""
    from autoconf.distribution import check_installation
    from autoconf.errors import AutoConfError

    try:
        check_installation()
    except AutoConfError as error:
        sys.exit(f"ado-autoconf: {error}")
    from autoconf.cli.main import run

    run()
