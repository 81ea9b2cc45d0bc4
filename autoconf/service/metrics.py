"""Metrics of the service in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Container, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Metrics:
    """The metrics of one server; their registry is its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "autoconf_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "autoconf_request_seconds",
            "Time from the first byte of a request to the last byte of its response.",
            ["path"],
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self.restarts = Counter(
            "autoconf_worker_restarts", "Workers that ended unexpectedly or took too long.", registry=self.registry
        )
        self.waiting = Gauge("autoconf_waiting", "Requests that wait for a free worker.", registry=self.registry)
        self.workers = Gauge("autoconf_workers", "Workers that run.", registry=self.registry)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)


class Measured:
    """An ASGI application whose requests are counted and timed.

    Args:
        app: The application.
        metrics: The metrics of the server.
        paths: The paths to name; others are counted together, since clients can send any number of them.
    """

    def __init__(self, app: App, metrics: Metrics, paths: Container[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status, start = "none", time.perf_counter()

        async def noting_status(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)
