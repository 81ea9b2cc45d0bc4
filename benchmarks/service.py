"""Load a server of ``ado-autoconf serve`` on loopback: requests per second and latency for 1, 16 and 64 clients.

Each client keeps one connection and sends the next request when it has the answer. Jobs differ in their tokens, so no
answer is repeated at once. ``service_soak.py`` asks for a long time, and prints the memory of all processes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

CLIENTS = (1, 16, 64)
JOB = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "H100",
    "per_device_train_batch_size": 4,
    "stack": "trl",
}


@contextmanager
def serving(workers: int) -> Iterator[tuple[int, int]]:
    """Run a server; yield its process id and its port."""
    command = [sys.executable, "-c", "from autoconf.cli import run; run()", "serve", "--port", "0"]
    process = subprocess.Popen([*command, "--workers", str(workers)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r":(\d+) with", line)
        if found is None:
            sys.exit(line + process.stderr.read())
        threading.Thread(target=sys.stderr.writelines, args=(process.stderr,), daemon=True).start()
        yield process.pid, int(found[1])
    finally:
        process.terminate()
        process.wait()


async def client(port: int, path: str, tokens: Iterator[int], end: float, seconds: list[float]) -> None:
    """Ask until the end; a status other than 200 or a lost connection raises."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        body = json.dumps({**JOB, "tokens_per_sample": next(tokens)}).encode()
        lines = (
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        )
        head = "\r\n".join([*lines, "", ""])
        start = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        await reader.readexactly(int(length[1]))
        seconds.append(time.perf_counter() - start)
    writer.close()


async def load(port: int, path: str, clients: int, duration: float) -> list[float]:
    """The seconds of each request."""
    seconds: list[float] = []
    tokens = itertools.cycle(range(512, 8192))
    end = time.perf_counter() + duration
    await asyncio.gather(*(client(port, path, tokens, end, seconds) for _ in range(clients)))
    return seconds


def table(port: int, path: str, duration: float) -> None:
    """Print a row for each number of clients."""
    print(f"\n| `POST {path}`, clients | requests per second | median, ms | p99, ms |\n| --- | --- | --- | --- |")
    for clients in CLIENTS:
        seconds = np.array(asyncio.run(load(port, path, clients, duration)))
        median, worst = np.percentile(seconds, [50, 99]) * 1000
        print(f"| {clients} | {len(seconds) / duration:.0f} | {median:.1f} | {worst:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    options = parser.parse_args()
    with serving(options.workers) as (_, port):
        asyncio.run(load(port, "/recommend", 4, 2.0))
        for path in ("/recommend", "/explain"):
            table(port, path, options.seconds)


if __name__ == "__main__":
    main()
