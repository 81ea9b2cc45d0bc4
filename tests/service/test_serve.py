"""``ado-autoconf serve``, as a real process on loopback."""

import io
import json
import random
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
psutil = pytest.importorskip("psutil")

from service import COMMAND, JOB, serving

from autoconf import (
    Job,
    Workload,
    avoid_oom,
    cheapest_gpu,
    estimate,
    explain,
    largest_batch,
    largest_sample,
    plan,
    recommend,
    throughput,
)

pytestmark = pytest.mark.long

NO_BATCH = {field: value for field, value in JOB.items() if field != "batch_size"}
NO_GPU = {field: value for field, value in JOB.items() if field != "gpu_model"}
EACH = {**NO_BATCH, "per_device_train_batch_size": 8}
MOST_ROWS, MOST_BYTES = 50, 100_000


@pytest.fixture(scope="module")
def server():
    with serving("--workers", "2", "--max-rows", str(MOST_ROWS), "--max-bytes", str(MOST_BYTES)) as running:
        yield running


# --- answers ----------------------------------------------------------------------------------------------------------


def test_each_query_gives_the_answer_of_the_python_api(server):
    assert server.post("/recommend", JOB).json["gpus"] == recommend(Workload(**JOB)).gpus == 2
    found = server.post("/avoid-oom", {**EACH, "number_gpus": 1}).json
    assert found["gpus"] == avoid_oom(Workload(**EACH), number_gpus=1).gpus
    found = server.post("/estimate", {**JOB, "number_gpus": 2}).json
    held = estimate(Workload(**JOB), number_gpus=2)
    assert (found["fits"], found["peak_memory_gib"]) == (held.fits, held.peak_memory_gib)
    found = server.post("/largest-batch", {**NO_BATCH, "number_gpus": 2}).json
    assert found["batch_size"] == largest_batch(Job(**NO_BATCH), number_gpus=2).batch_size
    fields = {field: value for field, value in JOB.items() if field != "tokens_per_sample"}
    found = server.post("/largest-sample", {**fields, "number_gpus": 2}).json
    assert found["tokens_per_sample"] == largest_sample(Job(**fields), number_gpus=2).tokens_per_sample
    found = server.post("/throughput", {**JOB, "number_gpus": 2, "steps": 100}).json
    speed = throughput(Workload(**JOB), number_gpus=2, steps=100)
    assert (found["tokens_per_second"], found["hours"]) == (speed.tokens_per_second, speed.hours)
    fields = {field: value for field, value in JOB.items() if field != "gpu_model"}
    first = server.post("/gpu-model", fields).json["ranking"][0]
    assert (first["rank"], first["gpu_model"]) == (1, cheapest_gpu(Job(**fields)).gpu_model)
    found = server.post("/plan", {**fields, "steps": 1000, "deadline_hours": "3"}).json
    planned = plan(Job(**fields), steps=1000, deadline_hours=3)
    assert [row["cost"] for row in found["ranking"]] == [*planned["cost"]]
    assert found["deadline_hours"] == 3


def test_a_worker_answers_with_another_version_than_the_one_it_was_forked_with(server):
    for _ in range(3):
        assert server.post("/recommend", {**JOB, "model_version": "1.1.0"}).json["gpus"] == 2


def test_an_explanation_has_the_memory_by_part_and_the_changes(server):
    found, expected = server.post("/explain", JOB).json, explain(Workload(**JOB))
    assert [row["number_gpus"] for row in found["at"]] == [*expected.at]
    assert [row["needed_memory_gib"] for row in found["at"]] == [one.needed_memory_gib for one in expected.at.values()]
    assert [change["sentence"] for change in found["changes"]] == [*map(str, expected.changes)]


def test_no_recommendation_is_an_answer_with_a_reason(server):
    found = server.post("/recommend", {**JOB, "max_gpus": 1})
    assert found.status == 200
    assert found.json["can_recommend"] == 0
    assert "would fit" in found.json["reason"]


def test_a_table_in_json_has_an_answer_for_each_job(server):
    jobs = [{**JOB, "batch_size": batch} for batch in (16, 64, 0)]
    answers = server.post("/recommend/table", {"jobs": jobs}).json["answers"]
    assert [answer["gpus"] for answer in answers] == [2, 8, None]
    assert answers[2]["outcome"] == "bad_value"
    assert "batch_size" in answers[2]["reason"]


def test_a_table_in_csv_keeps_its_columns(server):
    table = pd.DataFrame([{**JOB, "batch_size": batch, "owner": "a, b"} for batch in (16, 64)])
    answer = server.post("/recommend/table", table.to_csv(index=False).encode(), "text/csv")
    assert answer.headers["content-type"].startswith("text/csv")
    found = pd.read_csv(io.BytesIO(answer.body))
    assert [*found][: len([*table])] == [*table]
    assert (found["gpus"].tolist(), found["owner"].tolist()) == ([2, 8], ["a, b"] * 2)
    again = server.post("/recommend/table", answer.body, "text/csv")  # earlier answers are replaced
    assert again.body == answer.body


def test_gpu_types_for_a_table_are_rows_with_the_number_of_their_job(server):
    job = {field: value for field, value in JOB.items() if field != "gpu_model"}
    answers = server.post("/gpu-model/table", {"jobs": [job, {**job, "tokens_per_sample": 128}]}).json["answers"]
    assert {answer["job"] for answer in answers} == {0, 1}


def test_openapi_describes_every_path_with_examples_that_are_answered(server):
    paths = server.get("/openapi.json").json["paths"]
    assert {"/recommend", "/recommend/table", "/explain", "/jobs", "/healthz", "/metrics"} <= {*paths}
    for path, item in paths.items():
        if "post" not in item or path == "/mcp":
            continue
        content = item["post"]["requestBody"]["content"]
        (example,) = content["application/json"]["schema"]["examples"]
        path = "/estimate" if path == "/replay" else path  # the same fields, answered at once
        assert server.post(path, example).status == 200, path
        if "text/csv" in content:
            assert server.post(path, content["text/csv"]["example"].encode(), "text/csv").status == 200, path


def test_the_requests_of_the_guide_are_answered(server):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "service.md").read_text(encoding="utf-8")
    requests = re.findall(r"^```sh\n(.*?)```", guide, re.MULTILINE | re.DOTALL)
    assert len(requests) == 3
    for words in map(shlex.split, requests):
        kind = words[words.index("-H") + 1].removeprefix("Content-Type: ")
        answer = server.post(urlsplit(words[1]).path, words[-1].encode(), kind)
        assert answer.status == 200, answer.body


def test_state(server):
    health = server.get("/healthz")
    assert (health.status, health.json["status"], health.json["workers"]) == (200, "ok", 2)
    before = server.metric('autoconf_requests_total{path="/recommend",status="200"}')
    server.post("/recommend", JOB)
    assert server.metric('autoconf_requests_total{path="/recommend",status="200"}') == before + 1
    server.get("/no/such/path")
    assert server.metric('autoconf_requests_total{path="other",status="404"}') >= 1
    names = server.get("/names").json
    assert "llama-7b" in names["model_name"] and "L40S" in names["gpu_model"] and "trl" in names["stack"]


# --- job files --------------------------------------------------------------------------------------------------------

MANIFEST = (Path(__file__).parents[2] / "examples" / "pytorchjob.yaml").read_text(encoding="utf-8")
# The same job with its sharding in a file of its own.
NAMING = MANIFEST.replace("--use_fsdp --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP", "--config_file fsdp.yaml")
FSDP = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_sharding_strategy: FULL_SHARD}\n"


def test_a_job_file_comes_back_read_answered_and_patched(server):
    found = server.post("/jobs", {"files": {"job.yaml": NAMING, "fsdp.yaml": FSDP}}).json
    job = found["read"]["job"]
    assert (job["model_name"], job["sharding"]) == ("ibm-granite/granite-3.1-8b-base", "fsdp2")
    assert any(source["file"] == "fsdp.yaml" for source in found["read"]["read"])
    assert found["answer"]["gpus"] == 1
    expected = NAMING.replace("gpu: 8", "gpu: 1").replace("--num_processes 8", "--num_processes 1")
    assert found["patched"]["text"] == expected
    assert found["patched"]["file"] == "job.yaml"
    assert "8 -> 1 GPUs" in found["patched"]["notes"][0]


def test_a_job_file_without_counts_is_answered_but_not_patched(server):
    found = server.post("/jobs", {"files": {"job.yaml": MANIFEST}, "options": {"max_gpus": 1, "batch_size": 4096}}).json
    assert (found["answer"]["can_recommend"], found["patched"]) == (0, None)
    assert found["not_patched"].startswith("no recommendation: ")


def test_what_is_missing_in_a_job_file_is_named_as_a_field(server):
    answer = server.post("/jobs", {"files": {"job.yaml": MANIFEST.replace("nvidia.com/gpu.product", "zone")}})
    assert (answer.status, answer.json["kind"]) == (422, "bad_input")
    assert answer.json["error"].endswith("give gpu_model")


def test_no_file_of_the_server_is_read_for_a_job(tmp_path):
    """The named file exists next to the server, but a request is answered from its own texts alone."""
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep", tmp_path.parent):
        (folder / "fsdp.yaml").write_text(FSDP)
    names = "fsdp.yaml", "./fsdp.yaml", "deep/fsdp.yaml", "../fsdp.yaml", f"{tmp_path}/fsdp.yaml", "~/fsdp.yaml"
    with serving("--workers", "1", folder=tmp_path / "deep", env={"HOME": str(tmp_path)}) as server:
        for name in names:
            for manifest in ("job.yaml", str(tmp_path / "deep" / "job.yaml"), "../job.yaml"):
                text = NAMING.replace("fsdp.yaml", name)
                answer = server.post("/jobs", {"files": {manifest: text}})
                assert (answer.status, "no such file" in answer.json["error"]) == (422, True), answer.body
                given = server.post("/jobs", {"files": {manifest: text, "fsdp.yaml": FSDP}})
                assert given.status == 200, given.body


def test_no_path_or_environment_of_the_server_is_read_for_a_job(tmp_path):
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
              "num_hidden_layers": 32, "num_attention_heads": 32}  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    assert recommend(Workload(**{**JOB, "model_name": str(tmp_path / "mine")})).gpus == 2  # the API reads it
    with serving("--workers", "1", folder=tmp_path, env={"AUTOCONF_MODELS": str(tmp_path)}) as server:
        for name in (str(tmp_path / "mine"), "mine", "./mine", str(tmp_path / "mine" / "config.json"), "/etc", "~"):
            found = server.post("/recommend", {**JOB, "model_name": name}).json
            assert found["outcome"] == "outside_domain", name
            assert "folder" not in found["reason"].split(";")[0] and "no file" not in found["reason"]
        answer = server.post("/recommend", {**JOB, "model_version": "2.0.0+mine"})
        assert answer.status == 422
        assert str(tmp_path) not in answer.json["error"]


# --- bad requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content", "status", "named"),
    [
        ("/recommend", {**JOB, "batch_size": 0}, 422, "batch_size"),
        ("/recommend", {**JOB, "batchsize": 8}, 422, "batchsize: no such field"),
        ("/recommend", {**JOB, "self": 1, "cls": 2}, 422, "cls"),
        ("/recommend", {**JOB, "tokens_per_sample": [1]}, 422, "tokens_per_sample"),
        ("/recommend", {**JOB, "model_name": {"a": 1}}, 422, "model_name"),
        ("/recommend", {**JOB, "model_name": "x" * 90_000}, 422, "model_name"),
        ("/recommend", {**JOB, "per_device_train_batch_size": 1}, 422, "per_device_train_batch_size"),
        ("/recommend", {**JOB, "number_gpus": 1}, 422, "number_gpus"),
        ("/recommend", {}, 422, "model_name: is required"),
        ("/recommend", [JOB], 422, "body"),
        ("/recommend", b"", 400, "body"),
        ("/recommend", b'{"batch_size": NaN}', 400, "NaN"),
        ("/recommend", b'{"batch_size": 8, "batch_size": 9}', 400, "'batch_size' occurs twice"),
        ("/recommend", b"[" * 50_000, 400, "body"),
        ("/recommend", b'{"batch_size": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "body: nested more than 20 levels"),
        ("/recommend", {**JOB, "\ud800\n": 1}, 422, r"\ud800\n: no such field"),
        ("/recommend", {**JOB, **{f"x{n}": 1 for n in range(3_000)}}, 422, "x4 and 2,995 others: no such field"),
        ("/recommend", b'{"batch_size": ' + b"9" * 20_000 + b"}", 400, "body"),
        ("/recommend", b'{"a": "\xff"}', 400, "body"),
        ("/estimate", JOB, 422, "number_gpus: is required"),
        ("/plan", {**NO_GPU, "steps": 10, "budget": [1]}, 422, "budget: must be a number > 0"),
        ("/plan", {**NO_GPU, "steps": 10, "deadline_hours": -1}, 422, "deadline_hours: must be a number > 0"),
        ("/plan", {**NO_GPU, "steps": 10, "dataset_tokens": 10}, 422, "steps and dataset_tokens exclude each other"),
        ("/plan/table", {"jobs": [{**NO_GPU, "steps": 10, "budget": 1}]}, 422, "jobs[0].budget: no such field"),
        ("/largest-batch", {**JOB, "number_gpus": 2}, 422, "batch_size"),
        ("/recommend/table", {"jobs": []}, 422, "jobs"),
        ("/recommend/table", {"jobs": [JOB, 3]}, 422, "jobs[1]"),
        ("/recommend/table", {"jobs": [JOB, {**JOB, "foo": 3}]}, 422, "jobs[1].foo"),
        ("/recommend/table", {"jobs": [JOB] * (MOST_ROWS + 1)}, 413, f"at most {MOST_ROWS}"),
        ("/recommend/table", {"jobs": [{"method": "lora"}]}, 422, "model_name"),
        ("/recommend/table", {"rows": []}, 422, "rows"),
        ("/jobs", {"files": {"a.sh": 3}}, 422, "a.sh"),
        ("/jobs", {"files": {}}, 422, "files"),
        ("/jobs", {"files": {str(n): "" for n in range(21)}}, 413, "files"),
        ("/jobs", {"files": {"a.sh": "echo"}, "options": {"batch_size": -1}}, 422, "batch_size"),
        ("/jobs", {"files": {"a.sh": "echo"}, "options": 3}, 422, "options"),
        ("/jobs", {"files": {"a.sh": "echo"}, "nodes_only": "yes"}, 422, "nodes_only: must be true or false"),
        ("/jobs", {"files": {"a.sh": "echo"}, "options": {"batch": 3}}, 422, "options.batch: no such field"),
        ("/recommend", {**JOB, "note": "x" * MOST_BYTES}, 413, "body"),
        ("/nothing", {}, 404, ""),
    ],
)  # fmt: skip
def test_a_bad_request_gets_an_error_that_names_the_field(server, path, content, status, named):
    answer = server.post(path, content)
    assert answer.status == status
    assert named in answer.json["error"]
    assert len(answer.json["error"]) <= 2_000


def test_a_bad_table_in_csv_gets_an_error_that_names_the_line(server):
    good = pd.DataFrame([JOB] * 2).to_csv(index=False)
    for body, status, named in (
        (good.replace("16", "zero"), 422, "line 2: batch_size"),
        (good.replace("method", "methods"), 422, "method"),
        ("", 422, "line 1"),
        ("\0", 422, "0x00"),
        (good + good.split("\n", 1)[1] * MOST_ROWS, 413, f"at most {MOST_ROWS}"),
    ):
        answer = server.post("/recommend/table", body.encode(), "text/csv")
        assert (answer.status, named in answer.json["error"]) == (status, True), answer.body


def test_head_gets_the_head_of_get(server):
    for path in ("/", "/healthz", "/metrics"):
        answer, whole = server.send("HEAD", path), server.get(path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == whole.headers["content-type"]
    assert server.send("HEAD", "/recommend").status == 405


@pytest.mark.parametrize(("method", "path", "kind", "status"), [
    ("GET", "/recommend", "application/json", 405), ("POST", "/recommend", "text/plain", 415),
    ("POST", "/recommend", "", 415), ("POST", "/jobs", "text/csv", 415), ("DELETE", "/healthz", "", 405),
])  # fmt: skip
def test_a_wrong_method_or_type_gets_an_error(server, method, path, kind, status):
    answer = server.send(method, path, json.dumps(JOB), {"Content-Type": kind})
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json["error"]


def malformed(seed: int) -> bytes:
    """A body that is a valid job changed at random: its bytes, or its values and keys."""
    draw = random.Random(seed)
    job = {**EACH, "stack": "trl", "max_gpus": 16}
    if seed % 2:
        strange = [
            None,
            True,
            -1,
            0,
            1.5,
            1e308,
            10**40,
            "",
            "\0",
            "\ud800",
            "x" * 5_000,
            [],
            {},
            [[]],
            {"a": [1]},
            "NaN",
        ]
        for field in draw.sample([*job], draw.randint(1, 4)):
            value = job.pop(field)
            job[draw.choice([field, field, field.upper(), f"{field}\n", ""])] = draw.choice([*strange, value])
        return json.dumps(job).encode()
    data = bytearray(json.dumps(job).encode())
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[place] = draw.randrange(256)
        else:
            del data[place : place + draw.randint(1, 20)]
    return bytes(data)


def test_a_thousand_malformed_bodies_are_answered_or_refused(server):
    connection = server.connect()
    statuses = []
    for seed in range(1_000):
        path = ("/recommend", "/explain", "/recommend/table", "/jobs")[seed % 4 if seed % 3 else 0]
        body = malformed(seed)
        if path == "/jobs" and seed % 2:
            body = b'{"files": {"job.yaml": %s}, "options": %s}' % (json.dumps(MANIFEST).encode(), body)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.loads(response.read())
        statuses.append(response.status)
        assert response.status == 200 or (response.status in (400, 422) and content["error"]), (seed, content)
    connection.close()
    assert {*statuses} == {200, 400, 422}
    assert server.get("/healthz").json["workers"] == 2


def raw(server, data: bytes) -> socket.socket:
    """Send bytes to a server, and keep the connection open."""
    host, port = urlsplit(server.url).netloc.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(data)
    return connection


def test_a_body_in_parts_without_a_length_is_limited_too(server):
    part = b"%x\r\n%s\r\n" % (20_000, b"x" * 20_000)
    head = (
        b"POST /recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with raw(server, head + part * 7) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


HEAD = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"


@pytest.fixture(scope="module")
def impatient():
    """A server that gives a request 1 second to arrive, and 14 seconds from its head to the end of its answer."""
    with serving("--workers", "1", "--max-seconds", "1") as running:
        yield running


def send_slowly(connection: socket.socket) -> tuple[bytes, float]:
    """Send a byte five times a second until the server closes; what it said, and after how many seconds it closed."""
    start, said = time.monotonic(), b""
    connection.settimeout(0.2)
    while time.monotonic() - start < 30:
        try:
            connection.sendall(b"x")
            part = connection.recv(1000)
        except TimeoutError:
            continue
        except OSError:
            break
        said += part
        if not part:
            break
    return said, time.monotonic() - start


@pytest.mark.parametrize(("sent", "status", "longest"), [
    (b"", b"", 5),  # a connection that says nothing
    (b"POST /recommend HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"408", 5),  # the head
    (HEAD % b"/recommend", b"408", 7),  # the body, and what comes after the answer
    (HEAD % b"/no/such/path", b"404", 5),  # a body that nobody reads
    (HEAD.replace(b"Host: a", b"Host: 127.0.0.1\r\nAccept: application/json") % b"/mcp", b"", 20),
])  # fmt: skip
def test_a_slow_client_holds_no_place(impatient, sent, status, longest):
    with raw(impatient, sent) as connection:
        if sent:
            said, seconds = send_slowly(connection)
        else:
            start = time.monotonic()
            said, seconds = connection.recv(100), time.monotonic() - start
    assert said.partition(b"\r\n")[0].startswith(b"HTTP/1.1 %s" % status if status else b"")
    assert 0.5 < seconds < longest
    assert impatient.post("/recommend", JOB).status == 200


def test_a_slow_head_on_a_used_connection_is_limited_too(impatient):
    """The connection may stay idle for longer than a head may take."""
    connection = impatient.connect()
    for _ in range(2):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        time.sleep(2)
    connection.sock.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    said, seconds = send_slowly(connection.sock)
    assert said.startswith(b"HTTP/1.1 408")
    assert seconds < 5


def test_a_client_that_does_not_read_its_answer_holds_no_place(impatient):
    """Its many answers fill the buffers of the connection; then the server waits for the client, but not for ever."""
    with raw(impatient, b"") as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < 40:
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)


# --- workers ----------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[psutil.Process]:
    """The worker processes of a server: the children of its fork server."""
    return [child for one in psutil.Process(pid).children() for child in one.children()]


def test_nothing_is_lost_when_workers_are_killed(server):
    before = server.metric("autoconf_worker_restarts_total")
    stop, answers = threading.Event(), []

    def kill_again_and_again():
        for _ in range(5):
            enough = len(answers) + 8  # so that a request that is answered again has its answer
            while len(answers) < enough:
                time.sleep(0.05)
            oldest = min(children(server.process.pid), key=lambda child: child.create_time())
            oldest.kill()  # a request that was answered again is on a newer one
        stop.set()

    def keep_asking(tokens):
        while not stop.is_set():
            answers.append(server.post("/recommend", {**JOB, "tokens_per_sample": tokens}))

    killer = threading.Thread(target=kill_again_and_again, daemon=True)
    killer.start()
    with ThreadPoolExecutor(4) as threads:
        [*threads.map(keep_asking, range(1000, 1400, 100))]
    killer.join()
    assert {answer.status for answer in answers} == {200}
    assert all(answer.json["can_recommend"] for answer in answers)
    server.post("/recommend", JOB), server.post("/recommend", JOB)
    assert server.metric("autoconf_worker_restarts_total") > before
    assert server.get("/healthz").json["workers"] >= 1


def test_a_worker_that_was_killed_long_ago_does_not_end_the_server(server):
    """Its pipe is closed, and a write to it raises SIGPIPE, by which the command itself ends."""
    for child in children(server.process.pid):
        child.kill()
    time.sleep(1)
    assert {server.post("/recommend", JOB).status for _ in range(4)} == {200}
    assert server.process.poll() is None


def test_the_service_recovers_from_the_end_of_the_process_that_forks_its_workers():
    with serving("--workers", "1") as server:
        workers = children(server.process.pid)
        (forking,) = {worker.parent() for worker in workers}
        forking.kill()
        assert {server.post("/recommend", JOB).status for _ in range(2)} == {200}
        assert server.get("/healthz").json == {**server.get("/healthz").json, "status": "ok", "workers": 1}
        psutil.wait_procs(workers, timeout=30)
        assert not any(worker.is_running() for worker in workers)


def test_a_client_that_leaves_before_its_answer_does_not_end_the_server(server):
    body = json.dumps({"jobs": long_table(MOST_ROWS)}).encode()
    head = (HEAD % b"/recommend/table").replace(b"1000\r\n\r\n{", b"%d\r\n\r\n" % len(body))
    for _ in range(5):
        with raw(server, head + body) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
    assert server.post("/recommend", JOB).status == 200


def test_a_worker_that_is_stopped_holds_no_request():
    """It does not even read a large table, so that the task could not be sent for ever."""
    with serving("--workers", "1", "--max-seconds", "3") as server:
        for child in children(server.process.pid):
            child.suspend()
        start = time.monotonic()
        answer = server.post("/recommend/table", {"jobs": long_table(10_000)})
        assert (answer.status, answer.json["kind"]) == (413, "too_slow")
        assert time.monotonic() - start < 12
        assert server.post("/recommend", JOB).status == 200


def long_table(rows: int) -> list[dict[str, object]]:
    """Jobs for which a ranking of GPU types takes about 2 ms each."""
    job = {field: value for field, value in EACH.items() if field != "gpu_model"}
    return [{**job, "tokens_per_sample": 512 + index} for index in range(rows)]


def test_a_slow_answer_ends_with_an_error_and_the_next_one_is_given():
    with serving("--workers", "1", "--max-seconds", "0.6") as server:
        answer = server.post("/gpu-model/table", {"jobs": long_table(4_000)})
        assert (answer.status, answer.json["kind"]) == (413, "too_slow")
        assert answer.json["error"].startswith("jobs: ") and "send fewer jobs" in answer.json["error"]
        assert server.post("/healthz", {}).status == 405
        give_up_at = time.monotonic() + 60  # on a busy machine, the first answers take longer, too
        while (answer := server.post("/recommend", JOB)).status == 503 and time.monotonic() < give_up_at:
            assert answer.json["kind"] == "too_slow"
        assert answer.json["gpus"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_that_have_begun(number):
    with serving("--workers", "1", "--max-seconds", "300") as server, ThreadPoolExecutor(1) as threads:
        workers = children(server.process.pid)
        jobs = long_table(1_000)
        begun = threads.submit(server.post, "/gpu-model/table", {"jobs": jobs})
        time.sleep(0.5)
        assert not begun.done()
        server.process.send_signal(number)
        assert begun.result().status == 200
        assert {answer["job"] for answer in begun.result().json["answers"]} == {*range(len(jobs))}
        assert server.process.wait(60) == 0
        with pytest.raises(ConnectionError):
            server.get("/healthz")
        assert not any(worker.is_running() for worker in workers)


def test_a_fault_of_the_service_is_an_error_in_json(monkeypatch):
    """What cannot be pickled does not reach a worker; the front answers all the same."""
    from fastapi.testclient import TestClient

    from autoconf.service.pool import Pool
    from autoconf.service.web import make_app

    async def fails(*_):
        raise RecursionError

    pool = Pool(1)
    monkeypatch.setattr(pool, "ask", fails)
    with TestClient(make_app(pool), raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json=JOB)
    assert (answer.status_code, answer.json()["kind"]) == (500, "broken")
    assert answer.json()["error"].startswith("RecursionError")


# --- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "serve", *arguments], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("arguments", "named"), [
    (["--workers", "0"], "--workers"), (["--max-seconds", "nan"], "--max-seconds"), (["--port", "99999"], "--port"),
    (["--host", "192.0.2.1"], "--host 192.0.2.1"), (["--certificate", "a.pem"], "--key"),
    (["--certificate", "a.pem", "--key", "b.pem"], "--certificate"), (["--models", "/no/such"], "--models"),
])  # fmt: skip
def test_bad_options_end_with_an_error_that_names_them(arguments, named):
    done = command(*arguments)
    assert (done.returncode, named in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error(server):
    done = command("--port", str(urlsplit(server.url).port))
    assert done.returncode == 2
    assert "cannot listen there: Address already in use" in done.stderr


def test_the_server_listens_on_loopback_only(server):
    assert urlsplit(server.url).hostname == "127.0.0.1"


def test_the_package_imports_the_libraries_of_the_service_only_for_it():
    code = (
        "import sys, autoconf, autoconf.min_gpu_recommender, autoconf.cli.main; autoconf.recommend;"
        "names = 'fastapi', 'uvicorn', 'starlette', 'prometheus_client', 'mcp'\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
