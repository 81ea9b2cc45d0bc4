"""The version of the installed distribution, and a check for another distribution with a package of the same name."""

from importlib.metadata import PackageNotFoundError, version

from autoconf.errors import AutoConfError

NAME = "autoconf-gpus"
# Another project on the package index, and the name of this one before 2.1.0. It also installs a package `autoconf`
# and a command `ado-autoconf`, so one overwrites files of the other.
CLASHING = "ado-autoconf"


def __getattr__(name: str) -> str:
    """Look ``__version__`` up on first use, because a source tree that is not installed has no version."""
    if name == "__version__":
        return version(NAME)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_installation() -> None:
    """Check that no other distribution installs a package of this name.

    Raises:
        AutoConfError: another one does; the message names both, and how to remove it.

    >>> check_installation()
    """
    try:
        other = version(CLASHING)
    except PackageNotFoundError:
        return
    raise AutoConfError(
        f"two installed distributions have a package named autoconf: {NAME} {version(NAME)} and {CLASHING} {other}, "
        f"which overwrite each other's files; run: pip uninstall {CLASHING} {NAME}, then install {NAME} again"
    )
