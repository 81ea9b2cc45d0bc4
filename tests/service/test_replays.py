"""Replays of the service: ``POST /replay``."""

import asyncio
import json
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
psutil = pytest.importorskip("psutil")

from service import serving

from autoconf import Workload, estimate
from autoconf.predictor import build_extra
from autoconf.service.limits import Limits, Refused
from autoconf.service.replays import Replays

JOB = {
    "model_name": "smollm2-135m", "method": "full", "gpu_model": "L40S", "tokens_per_sample": 512,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "number_gpus": 1,
}  # fmt: skip

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server():
    with serving("--workers", "1") as running:
        yield running


def replaying(server) -> list[psutil.Process]:
    """The processes of a server that replay a job; one that has just ended does not."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "autoconf.cli.replay_task" in command(child)]


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_replay_has_the_memory_over_time(server):
    pytest.importorskip("torch")
    found = server.post("/replay", JOB).json
    fields = {field: value for field, value in JOB.items() if field != "number_gpus"}
    assert found["peak_memory_gib"] == pytest.approx(estimate(Workload(**fields), number_gpus=1).peak_memory_gib, 0.05)
    assert found["fits"] == 1 and found["failure"] == ""
    drawn = found["timeline"]
    assert [step["name"] for step in drawn["steps"]] == ["loading", "step 1", "step 2", "step 3"]
    assert max(drawn["allocated_gib"]) == pytest.approx(found["peak_memory_gib"], abs=0.001)
    assert max(drawn["reserved_gib"]) == pytest.approx(found["peak_reserved_gib"], abs=0.001)
    assert (
        len(drawn["allocated_gib"]) <= 600 < drawn["events"] <= len(drawn["allocated_gib"]) * drawn["events_per_point"]
    )
    assert drawn["failed_at_event"] is None


@pytest.mark.parametrize(("fields", "named"), [
    ({"method": 1.5}, "method"), ({"number_gpus": "many"}, "number_gpus"), ({"model": 1}, "model"),
])  # fmt: skip
def test_a_bad_field_is_named(server, fields, named):
    answer = server.post("/replay", {**JOB, **fields})
    assert answer.status == 422 and named in answer.json["error"]


def test_a_job_without_an_estimate_has_the_reason(server):
    answer = server.post("/replay", {**JOB, "model_name": "no-such-model"})
    assert answer.status == 200
    assert answer.json["fits"] is None and "no-such-model" in answer.json["reason"]


def test_a_replay_ends_when_its_client_leaves(server):
    connection = server.connect()
    connection.request("POST", "/replay", json.dumps(JOB), {"Content-Type": "application/json"})
    wait_until(lambda: replaying(server))
    connection.close()
    wait_until(lambda: not replaying(server))


def test_a_replay_that_takes_too_long_ends_with_an_error():
    with serving("--workers", "1", "--max-seconds", "0.3") as server:
        answer = server.post("/replay", JOB)
        assert (answer.status, answer.json["kind"]) == (503, "too_slow")
        assert not replaying(server)


def test_a_replay_that_is_killed_is_an_error_and_not_an_answer(server):
    connection = server.connect()
    connection.request("POST", "/replay", json.dumps(JOB), {"Content-Type": "application/json"})
    wait_until(lambda: replaying(server))
    replaying(server)[0].kill()
    assert connection.getresponse().status == 500


async def _stays() -> bool:
    return False


def test_a_missing_library_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(build_extra, "_EXTRA", ("no_such_library",))
    with pytest.raises(Refused, match=r"needs the extra \[build\].*pip install") as refused:
        asyncio.run(Replays(Limits()).ask(JOB, 44.0, _stays))
    assert refused.value.status == 501
