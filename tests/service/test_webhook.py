"""The admission webhook of ``examples/webhook``: real ``AdmissionReview`` bodies over TLS, and a real service."""

import base64
import copy
import datetime
import http.client
import http.server
import importlib.util
import ipaddress
import json
import ssl
import threading
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi")
x509 = pytest.importorskip("cryptography.x509")

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from published_schemas import problems
from service import serving

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "webhook"
pytestmark = pytest.mark.long

PYTORCHJOB = yaml.safe_load((ROOT / "examples" / "pytorchjob.yaml").read_text(encoding="utf-8"))
TRAINJOB = yaml.safe_load((ROOT / "tests" / "data" / "job_files" / "trainjob.yaml").read_text(encoding="utf-8"))
CONTAINER = PYTORCHJOB["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
JOBSET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": "tune"},
    "spec": {
        "replicatedJobs": [
            {"name": "data", "template": {"spec": {"template": {"spec": {"containers": [{"name": "copy"}]}}}}},
            {
                "name": "node",
                "replicas": 1,
                "template": {"spec": {"parallelism": 1, "completions": 1, "template": CONTAINER}},
            },
        ]
    },
}


@pytest.fixture(scope="module")
def webhook():
    spec = importlib.util.spec_from_file_location("webhook", EXAMPLE / "webhook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "autoconf-webhook")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
    )
    return folder


@pytest.fixture(scope="module")
def service():
    with serving("--workers", "1") as running:
        yield running


@pytest.fixture
def call(webhook, certificate):
    """Send a body to a webhook with a service, over TLS."""
    servers = []

    def send(body, url):
        server = webhook.make_server("127.0.0.1", 0, url, certificate / "tls.crt", certificate / "tls.key")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        trusting = ssl.create_default_context(cafile=certificate / "tls.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, context=trusting, timeout=60)
        connection.request("POST", "/mutate?timeout=5s", body if isinstance(body, bytes) else json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    yield send
    for server in servers:
        server.shutdown()
        server.server_close()


def reviewed(job, **annotations):
    """The review of a new job with annotations, as the API server sends it."""
    job = copy.deepcopy(job)
    job["metadata"]["annotations"] = {
        "team": "a/b",
        **{f"ado-autoconf/{name}": text for name, text in annotations.items()},
    }
    group, version = job["apiVersion"].split("/")
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": group, "version": version, "kind": job["kind"]},
            "resource": {"group": group, "version": version, "resource": f"{job['kind'].lower()}s"},
            "name": job["metadata"]["name"],
            "namespace": "default",
            "operation": "CREATE",
            "userInfo": {"username": "a", "groups": ["system:authenticated"]},
            "object": job,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    }


def applied(review, response):
    """The job of a review with the patch of a response."""
    job = copy.deepcopy(review["request"]["object"])
    assert response["patchType"] == "JSONPatch"
    for change in json.loads(base64.b64decode(response["patch"])):
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
        place = job
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        last = int(last) if isinstance(place, list) else last
        assert change["op"] == "add" or (last in place if isinstance(place, dict) else last < len(place))
        place[last] = change["value"]
    return job


def answer(call, review, url):
    status, body = call(review, url)
    assert (status, body["apiVersion"], body["kind"]) == (200, "admission.k8s.io/v1", "AdmissionReview")
    assert body["response"]["uid"] == review["request"]["uid"]
    assert body["response"]["allowed"] is True
    return body["response"]


GPUS = {"trainjob": 8, "jobset": 4}  # of the examples


def gpus(text):
    return text.replace('"nvidia.com/gpu": 8', '"nvidia.com/gpu": 1').replace("--num_processes 8", "--num_processes 1")


def test_the_counts_of_a_pytorchjob_are_set(call, service):
    review = reviewed(PYTORCHJOB, mode="counts")
    response = answer(call, review, service.url)
    job = applied(review, response)
    recorded = job["metadata"]["annotations"].pop("ado-autoconf/answer")
    assert job == json.loads(gpus(json.dumps(review["request"]["object"])))
    assert problems(job) == []
    assert recorded.startswith("8 -> 1 GPUs: the global batch changes from 32 to 4 samples")
    assert response["warnings"][0].startswith("autoconf: 8 -> 1 GPUs")
    assert all(len(warning) <= 256 for warning in response["warnings"])


def test_the_counts_of_the_one_job_of_a_jobset_are_set(call, service):
    review = reviewed(JOBSET, mode="counts")
    job = applied(review, answer(call, review, service.url))
    del job["metadata"]["annotations"]["ado-autoconf/answer"]
    assert job == json.loads(gpus(json.dumps(review["request"]["object"])))


def test_a_trainjob_is_changed_or_says_why_not(call, service):
    review = reviewed(TRAINJOB, mode="counts", gpu_model="H100")
    response = answer(call, review, service.url)
    assert "patch" in response
    assert applied(review, response) != review["request"]["object"]


@pytest.mark.parametrize("name", ["trainjob", "jobset"])
def test_the_example_of_a_job_is_changed_and_stays_valid(call, service, name):
    job = yaml.safe_load((EXAMPLE / f"{name}.yaml").read_text(encoding="utf-8"))
    review = reviewed(job)
    review["request"]["object"] = job
    changed = applied(review, answer(call, review, service.url))
    assert changed["metadata"]["annotations"].pop("ado-autoconf/answer").startswith(f"{GPUS[name]} -> 1 GPUs")
    assert (problems(job), problems(changed)) == ([], [])
    assert job != changed


TORCHRUN = (
    "torchrun sft.py --model_name_or_path Qwen/Qwen2.5-7B --max_length 8192 --per_device_train_batch_size 8 "
    "--gradient_accumulation_steps 1 --bf16 true --fsdp full_shard"
)  # the trainer's controller tells torchrun the counts


def with_nodes(kind, nodes):
    """A job on nodes of 2 GPUs, whose command has no counts."""
    container = {
        "name": "pytorch", "image": "example.org/trl:1", "command": ["sh", "-c"], "args": [TORCHRUN],
        "resources": {"limits": {"nvidia.com/gpu": 2}},
    }  # fmt: skip
    pod = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    match kind:
        case "TrainJob":
            trainer = {
                "numNodes": nodes,
                "numProcPerNode": 2,
                "image": "a",
                "command": ["sh", "-c"],
                "args": [TORCHRUN],
            }
            limits = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 2}}}
            spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": {**trainer, **limits}}
            return {
                "apiVersion": "trainer.kubeflow.org/v1alpha1",
                "kind": kind,
                "metadata": {"name": "t"},
                "spec": spec,
            }
        case "PyTorchJob":
            replicas = {"Master": {"replicas": 1, "template": pod}, "Worker": {"replicas": nodes - 1, "template": pod}}
            spec, api = {"nprocPerNode": "2", "pytorchReplicaSpecs": replicas}, "kubeflow.org/v1"
        case "JobSet":
            job = {"completionMode": "Indexed", "parallelism": nodes, "completions": nodes, "template": pod}
            spec = {"replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}]}
            api = "jobset.x-k8s.io/v1alpha2"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "tune"}, "spec": spec}


@pytest.mark.parametrize("kind", ["TrainJob", "PyTorchJob", "JobSet"])
def test_nodes_alone_change_at_the_same_gpus_for_each_node(call, service, kind):
    """The job needs 4 GPUs, which are two of its four nodes."""
    review = reviewed(with_nodes(kind, 4), mode="nodes", gpu_model="H100", method="full")
    job = applied(review, answer(call, review, service.url))
    assert job["metadata"]["annotations"].pop("ado-autoconf/answer").startswith("8 -> 4 GPUs")
    expected = with_nodes(kind, 2)
    assert job["spec"] == expected["spec"]
    assert problems(job) == []


def test_nodes_alone_do_not_change_if_other_counts_would(call, service):
    review = reviewed(with_nodes("TrainJob", 4), mode="nodes", gpu_model="H100", method="full")
    trainer = review["request"]["object"]["spec"]["trainer"]
    trainer["args"] = [TORCHRUN.replace("torchrun", "torchrun --nnodes 4 --nproc_per_node 2")]
    response = answer(call, review, service.url)
    assert "patch" not in response
    assert "nodes_only changes only counts of nodes" in response["warnings"][0]


def test_a_dry_run_changes_nothing_and_says_what_would(call, service):
    response = answer(call, reviewed(PYTORCHJOB, mode="dry-run"), service.url)
    assert "patch" not in response
    assert response["warnings"][0].startswith("autoconf: would change 8 -> 1 GPUs")


@pytest.mark.parametrize(("annotations", "named"), [
    ({"mode": "yes"}, "ado-autoconf/mode: must be counts, nodes or dry-run, got 'yes'"),
    ({"mode": "counts", "batch": "8"}, "batch: no such field"),
    ({"mode": "counts", "gpu_model": "A999"}, "gpu_model 'A999' is not in the domain"),
    ({"mode": "counts", "tokens_per_sample": "131072", "max_gpus": "1"}, "no recommendation"),
])  # fmt: skip
def test_what_cannot_be_answered_is_admitted_with_the_reason(call, service, annotations, named):
    response = answer(call, reviewed(PYTORCHJOB, **annotations), service.url)
    assert "patch" not in response
    assert named in response["warnings"][0]


def test_a_job_without_the_annotation_is_not_touched(call, service):
    before = service.metric('autoconf_requests_total{path="/jobs"')
    assert answer(call, reviewed(PYTORCHJOB, gpu_model="H100"), service.url).keys() == {"uid", "allowed"}
    assert service.metric('autoconf_requests_total{path="/jobs"') == before


def test_a_job_is_admitted_when_the_service_is_down_or_silent(call, webhook):
    review = reviewed(PYTORCHJOB, mode="counts")
    response = answer(call, review, "http://127.0.0.1:9")  # nobody listens
    assert response["warnings"][0].startswith("autoconf: not asked: ")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        found = webhook.review(review, f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5)["response"]
        assert found["allowed"] and "timed out" in found["warnings"][0]
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("change", [
    lambda job: job.pop("spec"), lambda job: job.update(spec=None), lambda job: job.update(kind="Deployment"),
    lambda job: job["metadata"].update(annotations={"ado-autoconf/mode": 3}), lambda job: job.update(kind="JobSet"),
    lambda job: job["spec"].update(pytorchReplicaSpecs={"Master": []}), lambda job: job.update(spec=[1]),
    lambda job: job.update(kind="JobSet", spec={"replicatedJobs": None}), lambda job: job.update(kind=None),
    lambda job: job["metadata"].update(name="\ud800"), lambda job: job.update(apiVersion={"a": float("nan")}),
    lambda job: job["metadata"]["annotations"].update({"ado-autoconf/max_gpus": {"a": [1]}}),
    lambda job: job["metadata"]["annotations"].update({"ado-autoconf/mode": ["counts"]}),
    lambda job: job["spec"].update(x=json.loads("[" * 900 + "]" * 900)),
])  # fmt: skip
def test_a_strange_job_is_admitted(call, service, change):
    review = reviewed(PYTORCHJOB, mode="counts")
    change(review["request"]["object"])
    response = answer(call, review, service.url)
    assert "patch" not in response and response["warnings"]


@pytest.mark.parametrize("job", [None, "job", 3, [], [1], {}, {"metadata": "a"}, {"metadata": {"annotations": "a"}}])
def test_what_is_not_a_job_is_admitted(call, job):
    review = reviewed(PYTORCHJOB)
    review["request"]["object"] = job
    assert "patch" not in answer(call, review, "http://127.0.0.1:9")


@pytest.mark.parametrize(("status", "body"), [
    (200, b"<html>"), (200, b"[]"), (200, b'{"patched": {}}'), (200, b'{"patched": {"text": "{", "notes": ["a: b"]}}'),
    (500, b"no JSON"), (503, b'{"error": "busy", "kind": "overloaded"}'), (302, b""), (200, b""),
])  # fmt: skip
def test_a_job_is_admitted_whatever_the_service_says(webhook, status, body):
    """Something else listens at the address of the service."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Write nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        found = webhook.review(reviewed(PYTORCHJOB, mode="counts"), f"http://127.0.0.1:{other.server_port}")["response"]
    assert found["allowed"] and found["warnings"] and "patch" not in found


def test_a_body_that_is_no_review_is_an_error(call):
    for body in (b"{", b"[]", b"{}", b'{"request": {}}', b"", b"[" * 50_000):
        status, content = call(body, "http://127.0.0.1:9")
        assert status == 400
        assert content["error"].startswith("body: ")


def test_a_silent_connection_holds_up_nobody(webhook, certificate):
    import socket

    server = webhook.make_server("127.0.0.1", 0, "http://127.0.0.1:9", certificate / "tls.crt", certificate / "tls.key")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_connection(("127.0.0.1", server.server_port)):
        trusting = ssl.create_default_context(cafile=certificate / "tls.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", server.server_port, context=trusting, timeout=5)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
    server.shutdown()
    server.server_close()


def test_the_registration_never_holds_up_a_job_and_matches_the_program():
    documents = [*yaml.safe_load_all((EXAMPLE / "deploy.yaml").read_text(encoding="utf-8"))]
    (registered,) = documents[-1]["webhooks"]
    assert (registered["failurePolicy"], registered["sideEffects"]) == ("Ignore", "None")
    assert {kind for rule in registered["rules"] for kind in rule["resources"]} == {
        "pytorchjobs",
        "trainjobs",
        "jobsets",
    }
    assert {operation for rule in registered["rules"] for operation in rule["operations"]} == {"CREATE"}
