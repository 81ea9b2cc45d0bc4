"""Answer one job through ado's REST API: ``python rest_api.py http://127.0.0.1:8000``, where ado serves it.

The API measures entities asynchronously: a request is posted, and then fetched until it has its result. Only Python's
standard library is needed.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from typing import Any

EXPERIMENT = "/api/v0/actuators/custom_experiments/experiments/min_gpu_recommender"
JOB = {
    "model_name": "llama-7b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-80GB-PCIe",
    "tokens_per_sample": 8192,
    "batch_size": 16,
    "model_version": "1.1.0",
}


def call(url: str, body: Any = None) -> Any:
    """Get from an address, or post JSON to it."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def entity(job: dict[str, Any]) -> dict[str, Any]:
    """A job as ado's API takes it: the value of each constitutive property."""
    values = [{"property": {"identifier": name}, "value": value} for name, value in job.items()]
    return {"identifier": "-".join(map(str, job.values())), "constitutive_property_values": values}


def measure(url: str, job: dict[str, Any], seconds: float = 120.0) -> dict[str, Any]:
    """Measure a job; the values of the target properties by name.

    Raises:
        urllib.error.HTTPError: ado refuses the job; its body says why.
        TimeoutError: There is no result in time.
    """
    (request,) = call(f"{url}{EXPERIMENT}/requests", [entity(job)])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # An address of its own for the request answers only when it is measured.
        found = [one for one in call(f"{url}{EXPERIMENT}/requests") if one["requestid"] == request]
        if found:
            return values(found[0])
        time.sleep(0.5)
    raise TimeoutError(f"request {request}: no result in {seconds:g} seconds")


def values(request: dict[str, Any]) -> dict[str, Any]:
    """The values of a measured request by property, or the reason why its measurement is invalid."""
    (result,) = request["measurements"]
    if "reason" in result:
        return {"error": result["reason"]}
    return {one["property"]["targetProperty"]["identifier"]: one["value"] for one in result["measurements"]}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1].rstrip("/"), JOB)))
