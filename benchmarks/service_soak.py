"""Ask a server of ``ado-autoconf serve`` mixed queries for a long time, and print what it holds and what failed.

Requests begin at a fixed rate, each on its own connection: every query for random jobs with 300 stacks, tables, job
files, a tool of agents, the page and its state, malformed bodies, and heads that never end. Now and then a worker is
killed, in the middle of whatever it does.
Memory is that of all processes of the server without mapped files (``Pss_Anon``), which others on the machine do not
change. A request fails if it gets no response in a minute, or one with a status that its kind does not allow. The last
column is the longest time for which the client itself did not run: it tells a stalled machine from a stalled server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from jobs import random_jobs, with_stacks
from service import serving

JOB_FILE = (Path(__file__).parents[1] / "examples" / "pytorchjob.yaml").read_text(encoding="utf-8")
JSON, CSV = "application/json", "text/csv"
NUMBER_GPUS = ("avoid-oom", "estimate", "largest-batch", "largest-sample", "throughput")
LEFT_OUT = {"largest-batch": "batch_size", "largest-sample": "tokens_per_sample", "gpu-model": "gpu_model"}
SHARES = {
    "recommend": 20, "explain": 10, "avoid-oom": 5, "estimate": 10, "largest-batch": 5, "largest-sample": 5,
    "throughput": 10, "gpu-model": 2, "table": 3, "csv": 3, "jobs": 5, "mcp": 5, "page": 2, "malformed": 14,
    "slow": 1,
}  # fmt: skip
COLUMNS = (
    "minute", "responses", "refused", "busy", "killed", "failed", "median, ms", "front, MB", "largest worker, MB",
    "all, MB", "client's pause, s",
)  # fmt: skip
MOST_SECONDS = 60.0
BUSY = 503  # all workers are busy, also with what others run on the machine


@dataclass(frozen=True)
class Ask:
    """A request: its kind, its bytes, and the statuses that it may get."""

    kind: str
    data: bytes
    allowed: tuple[int, ...] = (200,)


def post(path: str, body: bytes, kind: str = JSON, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\nContent-Type: {kind}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def malformed(body: bytes, draw: random.Random) -> bytes:
    """A body with some bytes changed or cut."""
    data = bytearray(body)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[place] = draw.randrange(256)
        else:
            del data[place : place + draw.randint(1, 20)]
        if not data:
            break
    return bytes(data)


def asks(seed: int, only: list[str]) -> Iterator[Ask]:
    """Requests without an end, of some kinds or of all; jobs repeat after 20,000."""
    draw = random.Random(seed)
    jobs = with_stacks(random_jobs(20_000), 300)
    shares = {kind: share for kind, share in SHARES.items() if not only or kind in only}
    while True:
        kind = draw.choices([*shares], [*shares.values()])[0]
        rows = jobs.iloc[[draw.randrange(len(jobs)) for _ in range(20)]]
        yield ask(kind, rows, draw)


def ask(kind: str, rows: pd.DataFrame, draw: random.Random) -> Ask:
    """A request of a kind about the first of these jobs, or about all of them."""
    job, *_ = jobs = [{name: value for name, value in row.items() if not pd.isna(value)} for row in as_json(rows)]
    if kind == "table":
        return Ask(kind, post("/recommend/table", json.dumps({"jobs": jobs}).encode()))
    if kind == "csv":
        return Ask(kind, post("/recommend/table", rows.to_csv(index=False).encode(), CSV))
    if kind == "jobs":
        files = {"job.yaml": JOB_FILE.replace("4096", str(draw.randrange(512, 8192)))}
        return Ask(kind, post("/jobs", json.dumps({"files": files}).encode()))
    if kind == "mcp":
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "recommend", "arguments": job}}
        accept = f"Accept: {JSON}, text/event-stream\r\nMCP-Protocol-Version: 2025-06-18\r\n"
        return Ask(kind, post("/mcp", json.dumps(call).encode(), more=accept))
    if kind == "page":
        path = draw.choice(["/", "/page.js", "/healthz", "/metrics", "/names", "/openapi.json"])
        return Ask(kind, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n".encode())
    if kind == "malformed":
        path = draw.choice(["/recommend", "/explain", "/recommend/table", "/jobs", "/no/such/path"])
        return Ask(kind, post(path, malformed(json.dumps(job).encode(), draw)), (200, 400, 404, 422))
    if kind == "slow":
        return Ask(kind, b"POST /recommend HTTP/1.1\r\nHost: 127.", (408,))
    job.pop(LEFT_OUT.get(kind, ""), None)
    if kind == "gpu-model":
        job.pop("model_version", None)
    if kind in NUMBER_GPUS:
        job.pop("max_gpus", None)
        job["number_gpus"] = draw.choice([1, 2, 4, 8, 16])
    return Ask(kind, post(f"/{kind}", json.dumps(job).encode()), (200, 422))


def as_json(rows: pd.DataFrame) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(rows.to_json(orient="records"))
    return [{name: value for name, value in row.items() if value is not None} for row in found]


@dataclass
class Counts:
    """What became of the requests: the seconds of each response, those refused, those told to come again because all
    workers were busy, the workers that were killed, a sentence on each request that failed, and the seconds for which
    the client itself did not run."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    busy: int = 0
    killed: int = 0
    failed: list[str] = field(default_factory=list)
    pause: float = 0.0

    def fail(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)
        self.failed.append(sentence)


async def send(port: int, one: Ask, counts: Counts) -> None:
    start, clock = time.perf_counter(), time.strftime("%H:%M:%S")
    try:
        async with asyncio.timeout(MOST_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(one.data)
            answer = await reader.read()
            writer.close()
        status = int(answer.split(None, 2)[1])
    except (OSError, TimeoutError, IndexError, ValueError) as error:
        counts.fail(f"{clock} {one.kind}: {type(error).__name__}: {error}")
        return
    if one.kind != "slow":
        counts.seconds.append(time.perf_counter() - start)
    counts.busy += status == BUSY
    counts.refused += status >= 400 and status != BUSY
    if status not in (*one.allowed, BUSY):
        counts.fail(f"{clock} {one.kind}: {status}: {answer[-300:]!r}")


async def ask_at_a_rate(port: int, requests: Iterator[Ask], rate: float, seconds: float, counts: Counts) -> None:
    """Begin requests at a rate, whatever becomes of earlier ones, and wait for all of them."""
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(begin + number / rate - time.perf_counter())
            group.create_task(send(port, next(requests), counts))


def held(pid: int) -> tuple[float, float, float]:
    """The megabytes of the front, of the largest worker, and of all processes of a server."""
    front = psutil.Process(pid)
    children = [anonymous(child.pid) for child in front.children(recursive=True)]
    return anonymous(pid), max(children, default=0.0), anonymous(pid) + sum(children)


def anonymous(pid: int) -> float:
    """Proportional memory of a process without mapped files, in megabytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except ProcessLookupError:  # it has just ended
        return 0.0
    (line,) = [line for line in lines if line.startswith("Pss_Anon:")]
    return int(line.split()[1]) / 1024


def kill_a_worker(pid: int) -> bool:
    """Kill a worker: a child of the process from which all workers are forked. False if none runs."""
    workers = [child for one in psutil.Process(pid).children() for child in one.children()]
    if workers:
        random.choice(workers).kill()
    return bool(workers)


async def kill_workers(pid: int, seconds: float, counts: Counts) -> None:
    """Kill a worker again and again, with so many seconds between."""
    while True:
        await asyncio.sleep(seconds)
        counts.killed += kill_a_worker(pid)


async def note_pauses(counts: Counts) -> None:
    """Measure how long the client itself is held up."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.1)
        counts.pause = max(counts.pause, time.perf_counter() - start - 0.1)


async def soak(pid: int, port: int, options: argparse.Namespace) -> None:
    """Ask for the minutes of the options, and print a row from time to time."""
    requests, counts = asks(0, options.only), Counts()
    await ask_at_a_rate(port, requests, options.rate, 60.0, Counts())  # libraries and caches
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    parts = max(1, round(options.minutes / options.every))
    others = [
        asyncio.create_task(kill_workers(pid, options.kill_every * 60, counts)),
        asyncio.create_task(note_pauses(counts)),
    ]
    for part in range(parts + 1):
        median = np.median(counts.seconds) * 1000 if counts.seconds else np.nan
        done = len(counts.seconds), counts.refused, counts.busy, counts.killed, len(counts.failed)
        print(
            f"| {part * options.every:g} | {' | '.join(f'{value:.0f}' for value in (*done, median, *held(pid)))} | "
            f"{counts.pause:.1f} |",
            flush=True,
        )
        if part < parts:
            await ask_at_a_rate(port, requests, options.rate, options.every * 60, counts)
    for other in others:
        other.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--every", type=float, default=10.0, metavar="MINUTES", help="minutes between rows")
    parser.add_argument(
        "--kill-every", type=float, default=7.0, metavar="MINUTES", help="minutes between killed workers"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[], choices=[*SHARES], metavar="KIND", help=", ".join(SHARES))
    options = parser.parse_args()
    with serving(options.workers) as (pid, port):
        asyncio.run(soak(pid, port, options))


if __name__ == "__main__":
    main()
