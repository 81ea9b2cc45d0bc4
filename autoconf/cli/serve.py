"""The commands ``ado-autoconf serve`` and ``ado-autoconf mcp``: answer queries over HTTP, or of an agent."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from autoconf.cli.options import exit_codes, note
from autoconf.errors import BadInput
from autoconf.jobs.names import listed
from autoconf.predictor.user_versions import folder_of

_EXTRAS = {"serve": ("fastapi", "prometheus_client", "uvicorn"), "mcp": ("mcp",)}


def check_extra(command: str, extra: str) -> None:
    """Check that the libraries of an extra are installed.

    Raises:
        BadInput: A library is missing; the message has the line that installs it.
    """
    missing = [package for package in _EXTRAS[extra] if find_spec(package) is None]
    if missing:
        raise BadInput(
            f"{command} needs the extra [{extra}]: in a clone of the project run pip install '.[{extra}]' "
            f"({listed(missing)} not found)"
        )


_Host = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="The address to listen on; 0.0.0.0 is all of the machine."),
]
_Port = Annotated[int, typer.Option("--port", metavar="NUMBER", help="The port; 0 takes a free one.")]
_Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="NUMBER", show_default=False, help="Worker processes; by default one per CPU."),
]
_Models = Annotated[
    str | None,
    typer.Option(
        "--models",
        metavar="DIR",
        show_default=False,
        help="Folder of your own versions; serve does not read AUTOCONF_MODELS.",
    ),
]
_Bytes = Annotated[int, typer.Option("--max-bytes", metavar="NUMBER", help="The largest request.")]
_Rows = Annotated[int, typer.Option("--max-rows", metavar="NUMBER", help="The most jobs in a table.")]
_Seconds = Annotated[float, typer.Option("--max-seconds", metavar="NUMBER", help="The longest time for one answer.")]
_Certificate = Annotated[
    str | None,
    typer.Option("--certificate", metavar="FILE", show_default=False, help="A certificate chain, for HTTPS."),
]
_Key = Annotated[
    str | None, typer.Option("--key", metavar="FILE", show_default=False, help="The certificate's private key.")
]


def serve_command(
    host: _Host = "127.0.0.1",
    port: _Port = 8642,
    workers: _Workers = None,
    models: _Models = None,
    most_bytes: _Bytes = 4 << 20,
    most_rows: _Rows = 10_000,
    seconds: _Seconds = 30.0,
    certificate: _Certificate = None,
    key: _Key = None,
) -> None:
    r"""Answer queries over HTTP, until SIGTERM; needs the extra \[serve].

    There is a POST for each query, such as /recommend, with the job as JSON; /recommend/table takes a table as JSON or
    CSV, and /jobs the texts of a job's files. /openapi.json describes all of them. /healthz and /metrics are for
    monitoring.

    There is no login and, without --certificate, no encryption. Put a reverse proxy that has both in front of the
    service before you listen on other addresses than 127.0.0.1.

    $ ado-autoconf serve --port 8642 --workers 2
    """
    with exit_codes():
        check_extra("serve", "serve")
        numbers = {"--workers": workers, "--max-bytes": most_bytes, "--max-rows": most_rows, "--max-seconds": seconds}
        for option, value in numbers.items():
            if value is not None and not value > 0:
                raise BadInput(f"{option}: must be greater than 0, got {value}")
        if (certificate is None) != (key is None):
            raise BadInput("--certificate and --key: give both or none")
        folder = _folder(models)
        from autoconf.service.limits import Limits
        from autoconf.service.serve import Address, serve

        count = workers or _cpus()
        serve(
            Address(host, port, certificate, key),
            count,
            Limits(bytes=most_bytes, rows=most_rows, seconds=seconds),
            folder,
            on_ready=lambda url: note(f"serving on {url} with {count} workers"),
        )


def mcp_command(models: _Models = None) -> None:
    r"""Answer an agent on standard input and output, over the Model Context Protocol; needs the extra \[mcp].

    The tools are recommend, estimate, explain, largest, cheapest, throughput and read_job. A service started
    with serve has the same tools at /mcp.

    $ ado-autoconf mcp
    """
    with exit_codes():
        check_extra("mcp", "mcp")
        folder = _folder(models)
        from autoconf.service.agents import serve_on_standard_streams

        serve_on_standard_streams(folder)


def _folder(models: str | None) -> Path | None:
    try:
        return None if models is None else folder_of(models)
    except ValueError as error:
        raise BadInput(f"--{error}") from None


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
