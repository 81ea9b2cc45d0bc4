"""A mutating admission webhook that sets the number of GPUs of a training job, by a service of ``ado-autoconf serve``.

    python webhook.py --service http://127.0.0.1:8642 --certificate tls.crt --key tls.key --port 8443

A job opts in with the annotation ``ado-autoconf/mode``: ``counts`` changes its GPUs and nodes, ``nodes`` its nodes
alone, and ``dry-run`` nothing. Other annotations ``ado-autoconf/FIELD`` are fields of the job that the manifest does
not state. A job is always admitted: whatever fails becomes a warning. Only Python's standard library is needed.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PREFIX = "ado-autoconf/"
MODE = f"{PREFIX}mode"
ANSWER = f"{PREFIX}answer"
MODES = ("counts", "nodes", "dry-run")
GPU = "nvidia.com/gpu"
MOST_BYTES = 4 << 20
MOST_LETTERS = 250  # of a warning; Kubernetes cuts longer ones


def review(body: Any, service: str, seconds: float = 4.0) -> dict[str, Any]:
    """Answer an ``AdmissionReview``; the job is always admitted.

    Args:
        body: The review.
        service: The address of the service.
        seconds: The longest time to wait for the service.

    Raises:
        ValueError: It is no review.
    """
    try:
        request = body["request"]
        uid = request["uid"]
    except (TypeError, KeyError):
        raise ValueError("must be an AdmissionReview with request.uid") from None
    response: dict[str, Any] = {"uid": uid, "allowed": True}
    try:
        patch, warnings = decide(request.get("object") or {}, service, seconds)
    except Exception as error:  # a job is never held up by this webhook
        patch, warnings = [], [f"not asked: {error}"]
    if warnings:
        response["warnings"] = [f"autoconf: {line}"[:MOST_LETTERS] for line in warnings]
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def decide(job: dict[str, Any], service: str, seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The JSON patch for a job, and warnings for the person who submits it."""
    annotations = (job.get("metadata") or {}).get("annotations") or {}
    mode = annotations.get(MODE)
    if mode is None:
        return [], []
    if mode not in MODES:
        return [], [f"{MODE}: must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}"]
    place, inner = single_job(job)
    found = ask(inner, annotations, service, seconds, nodes_only=mode == "nodes")
    if found["patched"] is None:
        return [], [f"not changed: {found['not_patched']}"]
    changes = [*differences(inner, json.loads(found["patched"]["text"]), place)]
    summary = found["patched"]["notes"][0].partition(": ")[2]
    if mode == "dry-run":
        return [], [f"would change {summary}"]
    if not changes:
        return [], []
    note = {"op": "add", "path": f"/metadata/annotations/{pointer(ANSWER)}", "value": summary}
    return [*changes, note], [summary, *found["patched"]["notes"][1:]]


def single_job(job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The JSON pointer of the job that counts GPUs, and its manifest: the job itself, or the one Job of a JobSet.

    Raises:
        ValueError: A JobSet has several Jobs with GPUs, or several copies of the one.
    """
    if job.get("kind") != "JobSet":
        return "", job
    jobs = job["spec"]["replicatedJobs"]
    (index, *others) = [index for index, one in enumerate(jobs) if GPU in json.dumps(one)] or [None]
    if index is None or others or jobs[index].get("replicas", 1) != 1:
        raise ValueError(f"spec.replicatedJobs: must have one Job with {GPU}, and one replica of it")
    spec = jobs[index]["template"]["spec"]
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": job.get("metadata", {}), "spec": spec}
    return f"/spec/replicatedJobs/{index}/template", inner


def ask(
    job: dict[str, Any], annotations: dict[str, str], service: str, seconds: float, nodes_only: bool
) -> dict[str, Any]:
    """The answer of the service for the manifest of a job, of which only the number of nodes may change or all counts.

    Raises:
        ValueError: The service refuses the job; the message names the field.
        OSError: The service does not answer.
    """
    fields = {name.removeprefix(PREFIX): value for name, value in annotations.items() if name.startswith(PREFIX)}
    options = {name: value for name, value in fields.items() if f"{PREFIX}{name}" not in (MODE, ANSWER)}
    body = {"files": {"job.json": json.dumps(job, indent=1)}, "options": options, "nodes_only": nodes_only}
    request = urllib.request.Request(
        f"{service.rstrip('/')}/jobs", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from None


def differences(before: Any, after: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """The JSON patch from one value to another; only values that both have can differ.

    >>> [*differences({"spec": {"numNodes": 2}}, {"spec": {"numNodes": 1}})]
    [{'op': 'replace', 'path': '/spec/numNodes', 'value': 1}]
    """
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from differences(before[key], after[key], f"{path}/{pointer(key)}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{path}/{index}")
    elif before != after:
        yield {"op": "replace", "path": path, "value": after}


def pointer(key: str) -> str:
    """A key as a JSON pointer writes it."""
    return key.replace("~", "~0").replace("/", "~1")


class Webhook(BaseHTTPRequestHandler):
    """Answers ``POST /mutate`` and ``GET /healthz``."""

    service = ""
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        self._send(200 if self.path == "/healthz" else 404, {})

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= MOST_BYTES:
                raise ValueError(f"must have 1 to {MOST_BYTES} bytes")
            content = review(json.loads(self.rfile.read(length)), self.service)
        except (ValueError, RecursionError) as error:
            self.close_connection = True
            self._send(400, {"error": f"body: {error}"})
            return
        self._send(200, content)

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Write no line for each request."""


def make_server(host: str, port: int, service: str, certificate: str, key: str) -> ThreadingHTTPServer:
    """Make the server; ``serve_forever`` runs it."""
    server = ThreadingHTTPServer((host, port), type("Handler", (Webhook,), {"service": service}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # Each connection shakes hands in its own thread, so that a silent one holds up nobody.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", default="http://127.0.0.1:8642", metavar="URL")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True, metavar="FILE")
    parser.add_argument("--key", required=True, metavar="FILE")
    options = parser.parse_args()
    make_server(options.host, options.port, options.service, options.certificate, options.key).serve_forever()


if __name__ == "__main__":
    main()
