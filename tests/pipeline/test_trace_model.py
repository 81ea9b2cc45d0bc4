"""Ways in which layers and heads run, as jobs to trace and back."""

from __future__ import annotations

import pytest

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

from autoconf.memory.model import head_way, layer_way
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.tracing.trace_model import head_job, head_ways, layer_job, layer_ways

LLAMA = architectures()["llama-7b"]


def test_a_job_that_is_traced_for_a_way_is_looked_up_by_that_way():
    """Otherwise figures would be traced for one setting, and used for another."""
    for way in layer_ways():
        job = layer_job(LLAMA, way)
        assert layer_way(job.stack, job.method, several=False) == way
    for way in head_ways():
        job = head_job(LLAMA, way)
        assert head_way(job.stack, job.method, several=False) == way


def test_every_way_is_traced_once():
    for ways in (list(layer_ways()), list(head_ways())):
        assert len(ways) == len(set(ways))
