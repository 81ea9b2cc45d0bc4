"""Limits of requests, and the reading of bodies within them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

REPLAY = "/replay"  # the path whose answers take long
_MOST_LEVELS = 20  # of objects and lists in a body; a body of each kind has at most four


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        bytes: The largest body of a request.
        rows: The most jobs in a table.
        files: The most files of a job.
        seconds: The longest time to receive the head of a request, its body, and to answer it; one limit for each.
        waiting: The most requests that wait for a free worker.
        patience: The longest time that a request waits for a free worker, in seconds.
    """

    bytes: int = 4 << 20
    rows: int = 10_000
    files: int = 20
    seconds: float = 30.0
    waiting: int = 512
    patience: float = 10.0

    @property
    def replay(self) -> float:
        """The longest time for one replay, in seconds; it records the whole training program."""
        return 10 * self.seconds

    def whole(self, path: str) -> float:
        """The longest time from the head of a request to the end of its answer, in seconds.

        The body arrives, the request waits for a worker and is answered, twice if a worker ends, and the client reads.

        Args:
            path: The path of the request.

        >>> Limits().whole("/recommend"), Limits().whole("/replay")
        (130.0, 370.0)
        """
        answering = self.replay if path == REPLAY else 2 * self.seconds
        return 2 * self.seconds + self.patience + answering


class Refused(Exception):
    """A request that is refused.

    Attributes:
        status: The status code of the response.
        kind: A word for programs.
        message: A sentence that names the field, for people.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


async def read_body(stream: AsyncIterable[bytes], declared: str | None, limits: Limits) -> bytes:
    """Read the body of a request.

    Args:
        stream: The parts of the body.
        declared: The header ``Content-Length``, if there is one.
        limits: Its size and time.

    Raises:
        Refused: It is too large, or it does not arrive in time.
    """
    too_large = Refused(413, "too_large", f"body: larger than {limits.bytes} bytes, the most that is read")
    if declared is not None and declared.isdecimal() and int(declared[:20]) > limits.bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in stream:
                body += part
                if len(body) > limits.bytes:
                    raise too_large
    except TimeoutError:
        raise Refused(408, "timeout", f"body: did not arrive within {limits.seconds:g} seconds") from None
    return bytes(body)


def read_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Read a body as one JSON object, in which a key occurs once and numbers are finite.

    Raises:
        Refused: It is anything else.

    >>> read_json(b'{"method": "lora"}', "application/json; charset=utf-8")
    {'method': 'lora'}
    >>> read_json(b'{"method": "lora", "method": "full"}', "application/json")
    Traceback (most recent call last):
    autoconf.service.limits.Refused: body: the key 'method' occurs twice
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "media_type", "Content-Type: must be application/json")
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "bad_json", f"body: is not JSON: {error or 'nested too deeply'}") from None
    if _is_deeper(found, _MOST_LEVELS):
        raise Refused(400, "bad_json", f"body: nested more than {_MOST_LEVELS} levels deep")
    if not isinstance(found, dict):
        raise Refused(422, "bad_input", "body: must be a JSON object with the fields of a job")
    return found


def _is_deeper(value: Any, most: int) -> bool:
    """Whether objects and lists are nested in more levels.

    >>> _is_deeper({"a": [1]}, 2), _is_deeper({"a": [1, [2]]}, 2)
    (False, True)
    """
    inner = [value]
    for _ in range(most + 1):
        inner = [
            one
            for outer in inner
            if isinstance(outer, (dict, list))
            for one in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Refused(400, "bad_json", f"body: the key {key[:80]!r} occurs twice")
        found[key] = value
    return found


def _not_finite(name: str) -> Any:
    raise Refused(400, "bad_json", f"body: {name} is not JSON")


def check_jobs_body(body: dict[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """The rows of a table in JSON.

    Raises:
        Refused: It is not ``{"jobs": [{...}, ...]}``, or it has too many rows.
    """
    _only(body, "jobs")
    rows = body.get("jobs")
    if not isinstance(rows, list) or not rows:
        raise Refused(422, "bad_input", "jobs: must be a list of jobs, with at least one")
    if len(rows) > limits.rows:
        raise Refused(413, "too_large", f"jobs: {len(rows)} rows, but at most {limits.rows} are answered at once")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise Refused(422, "bad_input", f"jobs[{index}]: must be an object with the fields of a job")
    return rows


def check_files_body(body: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The files and options of a job, and whether only its number of nodes may change.

    Raises:
        Refused: It is not ``{"files": {name: text}, "options": {...}, "nodes_only": bool}``, or there are too many
            files.
    """
    _only(body, "files", "options", "nodes_only")
    files, options, nodes_only = body.get("files"), body.get("options", {}), body.get("nodes_only", False)
    if not isinstance(files, dict) or not files:
        raise Refused(422, "bad_input", "files: must be an object with the text of each file by its name")
    if len(files) > limits.files:
        raise Refused(413, "too_large", f"files: {len(files)} files, but at most {limits.files} are read")
    for name, text in files.items():
        if not isinstance(text, str) or not name.strip() or "\0" in name:
            raise Refused(422, "bad_input", f"files[{name[:80]!r}]: must be the text of a file, by its name")
    if not isinstance(options, dict):
        raise Refused(422, "bad_input", "options: must be an object with fields of the job")
    if not isinstance(nodes_only, bool):
        raise Refused(422, "bad_input", "nodes_only: must be true or false")
    return {"files": files, "options": options, "nodes_only": nodes_only}


def _only(body: dict[str, Any], *known: str) -> None:
    for key in body:
        if key not in known:
            raise Refused(422, "bad_input", f"{key[:80]}: no such field; the fields are {', '.join(known)}")
