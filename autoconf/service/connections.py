"""Connections that a slow client cannot hold: the head of a request and its answer have a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, cast

from uvicorn import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from autoconf.service.limits import Limits
from autoconf.service.metrics import App, Receive, Scope, Send

_KEY = "autoconf_connection"  # in the state of a request's scope
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class TimedConnection(asyncio.Protocol):
    """One connection, which uvicorn's protocol reads and writes, and which ends when a limit of time has passed.

    The head of a request must arrive within ``limits.seconds``. From then on a request and its answer have
    the seconds of ``limits.whole`` together, also if the client sends its body or reads the answer slowly.

    Attributes:
        limits: The limits of time.

    Args:
        config: The configuration of the server.
        app_state: The state of the server.
        more: What else uvicorn gives to a protocol.
    """

    limits = Limits()

    def __init__(self, config: Config, app_state: dict[str, Any], **more: Any) -> None:
        make: Callable[..., asyncio.Protocol] = AutoHTTPProtocol
        self._inner = make(config=config, app_state={**app_state, _KEY: self}, **more)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._phase: Literal["silent", "head", "request"] = "silent"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._limit(self.limits.seconds)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._phase == "silent":
            self._phase = "head"
            if self._timer is None:  # the connection has had a request before
                self._limit(self.limits.seconds)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self._transport = None
        self._inner.connection_lost(exc)

    def begin(self, path: str) -> None:
        """Limit the time of a request to this path whose head has arrived."""
        self._phase = "request"
        self._limit(self.limits.whole(path))

    def end(self) -> None:
        """Lift the limit if the client has taken the answer; uvicorn closes a connection that stays silent."""
        self._phase = "silent"
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._cancel()

    def _limit(self, seconds: float) -> None:
        self._cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._transport is None:
            return
        if self._phase == "head":
            self._transport.write(_LATE)
            self._transport.close()
            self._phase = "request"
            self._limit(1.0)  # for a client that does not read it
        else:
            self._transport.abort()


class TimedRequests:
    """An ASGI application that tells each connection when its request begins and when its answer ends.

    Args:
        app: The application.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("state", {}).pop(_KEY, None)
        if scope["type"] != "http" or connection is None:
            await self._app(scope, receive, send)
            return
        connection.begin(scope["path"])
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end()


def timed_connections(limits: Limits) -> type[TimedConnection]:
    """Make the protocol that uvicorn starts for each connection.

    Args:
        limits: The limits of time.
    """
    return type("LimitedConnection", (TimedConnection,), {"limits": limits})
