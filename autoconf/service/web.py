"""The service as a web application: one POST for each query, tables, job files, health, metrics and the page."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from autoconf.distribution import __version__
from autoconf.errors import AutoConfError
from autoconf.jobs.queries import ESTIMATE, MIN_GPUS
from autoconf.predictor import registry
from autoconf.service.limits import REPLAY, Limits, Refused, check_files_body, check_jobs_body, read_body, read_json
from autoconf.service.metrics import App, Measured, Metrics, Receive, Scope, Send
from autoconf.service.pool import Overloaded, Pool, TooSlow
from autoconf.service.queries import QUERIES
from autoconf.service.replays import Replays
from autoconf.service.schemas import FILES_SCHEMA, answer_schema, explanation_schema, files_answer_schema, job_schema
from autoconf.service.tasks import Reply, Task

_STATUS = {"ok": 200, "bad_input": 422, "too_large": 413, "broken": 500}
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Turns requests into tasks for the workers, and their replies into responses.

    Args:
        pool: The workers.
        limits: Limits of requests.
        metrics: Counters of the server.
    """

    def __init__(self, pool: Pool, limits: Limits, metrics: Metrics) -> None:
        self.pool, self.limits, self.metrics = pool, limits, metrics
        pool.on_restart = metrics.restarts.inc

    async def body(self, request: Request) -> bytes:
        """Read the body of a request within the limits."""
        return await read_body(request.stream(), request.headers.get("content-length"), self.limits)

    async def content(self, request: Request) -> dict[str, Any]:
        """Read the body of a request as a JSON object."""
        return read_json(await self.body(request), request.headers.get("content-type", ""))

    async def reply(self, task: Task) -> Reply:
        """Answer a task.

        Raises:
            Refused: No worker answers in time.
        """
        try:
            return await self.pool.ask(task)
        except Overloaded:
            raise Refused(503, "overloaded", "all workers are busy; try again in a moment") from None
        except TooSlow:
            message = f"the answer takes longer than {self.limits.seconds:g} seconds"
            hint = "; send fewer jobs" if task.kind in ("rows", "csv") else ""
            raise Refused(413 if hint else 503, "too_slow", f"jobs: {message}{hint}" if hint else message) from None
        except AutoConfError as error:
            raise Refused(503, "broken", str(error)) from None

    async def respond(self, task: Task) -> Response:
        """Answer a task as JSON."""
        found = await self.reply(task)
        return as_json(found.content) if found.status == "ok" else refusal(_refused(found))


def _refused(reply: Reply) -> Refused:
    return Refused(_STATUS[reply.status], reply.status, reply.content)


def as_json(content: Any, status: int = 200) -> Response:
    """A response in JSON, in ASCII, so that any text of a request can be in it."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def refusal(refused: Refused) -> Response:
    """The response to a request that is refused: ``error``, a sentence, and ``kind``, a word."""
    response = as_json({"error": refused.message[:2_000], "kind": refused.kind}, refused.status)
    if refused.kind == "overloaded":
        response.headers["Retry-After"] = "1"
    return response


def make_app(pool: Pool, limits: Limits | None = None, host: str = "127.0.0.1") -> App:
    """Make the application.

    Args:
        pool: Its workers, which have been started; the application stops them when it ends.
        limits: Limits of requests.
        host: The address that the server listens on.
    """
    service = Service(pool, limits or Limits(), Metrics())
    routes, agents = _agents(service, host)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with agents:
            yield
        pool.stop()

    # Pages for /docs would be fetched from elsewhere.
    app = FastAPI(
        title="AutoConf",
        version=__version__,
        summary="The minimum number of GPUs for a fine-tuning job",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _handle_errors(app)
    _add_queries(app, service)
    _add_replay(app, service)
    _add_job_files(app, service)
    _add_state(app, service)
    _add_page(app)
    app.router.routes.extend(routes)
    return Measured(_with_head(app), service.metrics, {getattr(route, "path", "") for route in app.routes})


def _with_head(app: App) -> App:
    """An application that also answers HEAD where it answers GET; the server leaves out the body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        head = scope["type"] == "http" and scope["method"] == "HEAD" and scope["path"] != "/mcp"
        await app({**scope, "method": "GET"} if head else scope, receive, send)

    return answer


def _agents(service: Service, host: str) -> tuple[list[BaseRoute], AbstractAsyncContextManager[None]]:
    """The route ``/mcp`` and the manager of its connections; no route without the extra ``mcp``."""
    if find_spec("mcp") is None:
        return [], nullcontext()
    from autoconf.service.agents import make_server

    async def ask(task: Task) -> Reply:
        try:
            return await service.reply(task)
        except Refused as refused:
            return Reply("broken", refused.message)

    server = make_server(ask)
    app = server.streamable_http_app(
        json_response=True, stateless_http=True, max_request_body_size=service.limits.bytes, host=host
    )
    return [*app.routes], server.session_manager.run()


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def of_framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {404: "not_found", 405: "method"}.get(error.status_code, "http")
        response = refusal(Refused(error.status_code, kind, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)  # a fault of this package, which is logged as well
    async def fail(_: Request, error: Exception) -> Response:
        return refusal(Refused(500, "broken", f"{type(error).__name__}; the server's output has more"))


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}, "kind": {"type": "string"}},
                }
            }
        },
    }
    for status, description in {
        400: "The body is not JSON.",
        413: "The body, the table or the time for it is too large.",
        415: "The body has another type.",
        422: "A field is missing, unknown or invalid; the error names it.",
        501: "A library that a replay needs is not installed.",
        503: "All workers are busy, or the answer takes too long.",
    }.items()
}


def _post(app: FastAPI, path: str, handler: Handler, summary: str, bodies: dict[str, Any], answer: Any) -> None:
    """Add a POST whose body is documented, but read by the handler."""
    app.post(
        path,
        summary=summary,
        operation_id=path.strip("/").replace("/", "_").replace("-", "_"),
        responses={200: {"description": "The answer.", "content": {**answer}}, **_ERRORS},
        response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": bodies}},
    )(handler)


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _add_queries(app: FastAPI, service: Service) -> None:
    for name, served in QUERIES.items():
        job = job_schema(served.query)
        one = _schema(job_schema(served.query, served.bounds))
        _post(app, f"/{name}", _one(service, "job", name), served.summary, one, _schema(answer_schema(served)))
        rows = {"type": "object", "required": ["jobs"], "additionalProperties": False}
        table = {
            **rows,
            "properties": {"jobs": {"type": "array", "items": job}},
            "examples": [{"jobs": job["examples"]}],
        }
        csv = {"text/csv": {"schema": {"type": "string"}, "example": _csv_example(job["examples"][0])}}
        answers = {"type": "object", "properties": {"answers": {"type": "array", "items": {"type": "object"}}}}
        _post(
            app,
            f"/{name}/table",
            _table(service, name),
            f"{served.summary}, for each job of a table",
            {**_schema(table), **csv},
            {**_schema(answers), "text/csv": {"schema": {"type": "string"}}},
        )
    summary = "The minimum number of GPUs, the memory by part, and the changes that would help"
    _post(
        app, "/explain", _one(service, "explain", ""), summary, _schema(job_schema(MIN_GPUS)),
        _schema(explanation_schema()),
    )  # fmt: skip


def _csv_example(job: dict[str, Any]) -> str:
    return "\n".join([",".join(job), ",".join(map(str, job.values())), ""])


def _one(service: Service, kind: str, name: str) -> Handler:
    async def answer(request: Request) -> Response:
        return await service.respond(Task(kind, await service.content(request), name, html=kind == "explain"))

    return answer


def _table(service: Service, name: str) -> Handler:
    async def answer(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/csv":
            rows = check_jobs_body(await service.content(request), service.limits)
            return await service.respond(Task("rows", rows, name))
        found = await service.reply(Task("csv", await service.body(request), name, service.limits.rows))
        if found.status != "ok":
            return refusal(_refused(found))
        return Response(found.content.encode("utf-8"), media_type="text/csv; charset=utf-8")

    return answer


def _add_replay(app: FastAPI, service: Service) -> None:
    replays = Replays(service.limits)

    async def answer_replay(request: Request) -> Response:
        fields = await service.content(request)
        found = await service.reply(Task("job", fields, "estimate"))
        if found.status == "ok" and (usable_gib := found.content["usable_memory_gib"]) is not None:
            found = await replays.ask(fields, usable_gib, request.is_disconnected)
        return as_json(found.content) if found.status == "ok" else refusal(_refused(found))

    summary = "The memory of a job over time, and where it runs out of memory; takes up to minutes"
    _post(app, REPLAY, answer_replay, summary, _schema(job_schema(ESTIMATE)), _schema({"type": "object"}))


def _add_job_files(app: FastAPI, service: Service) -> None:
    async def answer_files(request: Request) -> Response:
        content = check_files_body(await service.content(request), service.limits)
        return await service.respond(Task("files", content, html=True))

    summary = "What is read from a job file, the answer, and the file with the GPU counts changed"
    _post(app, "/jobs", answer_files, summary, _schema(FILES_SCHEMA), _schema(files_answer_schema()))


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the workers run", response_class=Response)
    async def health() -> Response:
        running = len(service.pool.pids)
        content = {"version": __version__, "model_version": registry.DEFAULT, "workers": running}
        return as_json({"status": "ok" if running else "no worker runs", **content}, 200 if running else 503)

    @app.get("/metrics", summary="Metrics in the format of Prometheus", response_class=Response)
    async def metrics() -> Response:
        service.metrics.waiting.set(service.pool.waiting)
        service.metrics.workers.set(len(service.pool.pids))
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/names", summary="Names of models, GPU types and settings", response_class=Response)
    async def names() -> Response:
        return await service.respond(Task("names"))


_PAGE = Path(__file__).with_name("page")
_FILES = {"/": "page.html", **{f"/{name}": name for name in ("page.css", "page.js", "common.js", "timeline.js")}}
_HEADERS = {
    # Nothing is fetched from elsewhere, and no other page may show this one. The widths of bars are inline styles.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a link may hold a job
}


def _add_page(app: FastAPI) -> None:
    for path, name in _FILES.items():
        kind = mimetypes.guess_type(name)[0] or "text/plain"
        app.get(path, include_in_schema=False)(_file((_PAGE / name).read_bytes(), kind))


def _file(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)

    return answer
