"""The command ``ado-autoconf``."""

from autoconf.cli.main import app, run

__all__ = ["app", "run"]
