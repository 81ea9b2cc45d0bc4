"""A real server of ``ado-autoconf serve`` on loopback, and small HTTP clients for it."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

JOB = {
    "model_name": "llama-7b", "method": "lora", "gpu_model": "NVIDIA-A100-80GB-PCIe", "tokens_per_sample": 8192,
    "batch_size": 16,
}  # fmt: skip
COMMAND = [sys.executable, "-c", "from autoconf.cli import run; run()"]


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server(NamedTuple):
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str

    def connect(self, timeout: float = 300) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=timeout)

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post(self, path: str, content: Any, kind: str = "application/json") -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.send("POST", path, body, {"Content-Type": kind})

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """The value of a metric; 0 if it has none."""
        text = self.get("/metrics").body.decode()
        return float(next((row.split()[-1] for row in text.splitlines() if row.startswith(line)), 0))


@contextmanager
def serving(*options: str, folder: Path | None = None, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server on a free port, in a folder."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options],
        stderr=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, **(env or {})},
    )  # fmt: skip
    said: list[str] = []
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"https?://[\w.:\[\]]+", line):
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that the pipe never fills
        yield Server(process, found[0])
    finally:
        process.kill()
        process.wait()
