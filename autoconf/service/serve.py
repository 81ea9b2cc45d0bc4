"""Run the service: start the workers, answer until SIGTERM or SIGINT, then finish the requests that have begun."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from autoconf.errors import BadInput
from autoconf.files import reason
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.service.connections import TimedRequests, timed_connections
from autoconf.service.limits import Limits
from autoconf.service.pool import Pool
from autoconf.service.web import make_app


@dataclass(frozen=True)
class Address:
    """Where the service listens.

    Attributes:
        host: A name or an address of this machine.
        port: A port; 0 takes a free one.
        certificate: A file with a certificate chain, for HTTPS.
        key: A file with its private key.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    certificate: str | None = None
    key: str | None = None


def serve(
    address: Address,
    workers: int,
    limits: Limits,
    models: ModelsFolder = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal ends it.

    Args:
        address: Where to listen.
        workers: Number of worker processes.
        limits: Limits of requests.
        models: Folder of user versions.
        on_ready: Called with the address when the workers have started.

    Raises:
        BadInput: It cannot listen there, or cannot read the certificate.
        AutoConfError: The installation is broken.
    """
    pool = Pool(workers, models, seconds=limits.seconds, patience=limits.patience, most_waiting=limits.waiting)
    config = uvicorn.Config(
        TimedRequests(make_app(pool, limits, address.host)),
        http=timed_connections(limits),
        ws="none",
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(max(2 * limits.seconds, limits.replay) + limits.patience) + 1,
    )
    # The command ends when its output is closed, but a client that leaves or a killed worker must not end the server.
    if hasattr(signal, "SIGPIPE"):  # Windows lacks it
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with _listening(address, config) as listening:
        pool.start()
        listening.listen(config.backlog)
        host, port = listening.getsockname()[:2]
        scheme = "https" if address.certificate else "http"
        on_ready(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        # uvicorn raises the signal again after the last response; a drained server has ended as it should.
        for ending in (signal.SIGINT, signal.SIGTERM):
            signal.signal(ending, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _listening(address: Address, config: uvicorn.Config) -> Iterator[socket.socket]:
    """Bind a socket to the address, and read the certificate."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address.host, address.port))
        except (OSError, OverflowError) as error:
            raise BadInput(
                f"--host {address.host} --port {address.port}: cannot listen there: {reason(error)}"
            ) from None
        try:
            config.load()
        except (OSError, ValueError) as error:
            raise BadInput(f"--certificate and --key: cannot read them: {reason(error)}") from None
        yield listening
