"""The examples of ado on a Ray cluster and of its REST API, on a real cluster of one node on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("ado.api.rest")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cluster" / "rest_api.py"
BIN = Path(sys.executable).parent
SERVE = """
import sys, ray
from ray import serve
from ado.api.rest import ado_rest_api
ray.init(address=sys.argv[1])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(ado_rest_api, blocking=False)
"""
LOGIN = {"RAY_AUTH_MODE": "disabled"}  # whether or not this user has a token
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node: its address, and that of its dashboard."""
    folder = tempfile.mkdtemp(prefix="ray")  # pytest's folders are too long for Ray's sockets
    port, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | LOGIN
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--port", str(port), "--dashboard-host", "127.0.0.1",
        "--dashboard-port", str(dashboard), "--num-cpus", "4", "--disable-usage-stats", "--temp-dir", folder,
    ]  # fmt: skip
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", head)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, head: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and head.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no cluster at {url}")


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, cwd=ROOT,
        env={**os.environ, **LOGIN, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_is_answered_through_the_rest_api_of_ado(cluster):
    address, _ = cluster
    port = free_port()
    run(sys.executable, "-c", SERVE, address, port, RAY_ADDRESS=address)
    said = run(sys.executable, EXAMPLE, f"http://127.0.0.1:{port}")
    assert json.loads(said) == {"can_recommend": 1, "gpus": 2, "workers": 1, "outcome": "ok"}


def test_a_job_is_answered_by_a_job_of_the_cluster(cluster):
    _, dashboard = cluster
    said = run(
        BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", "examples", "--",
        BIN / "run_experiment", "simple.yaml", RAY_ADDRESS="",
    )  # fmt: skip
    assert "succeeded" in said
    assert [line.split()[-1] for line in said.splitlines() if line.split()[:1] == ["gpus"]] == ["2"]
