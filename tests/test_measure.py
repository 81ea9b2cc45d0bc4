"""The real training steps of ``make measure``, on the CPU as far as that goes: their peaks need a GPU."""

import pytest

pytest.importorskip("torch", reason="versions are traced with the extra [build], installed on Python 3.11")

import numpy as np
import torch
from test_tracer import TINY

from autoconf.build import measure, tracer
from autoconf.memory import GIB, MemoryTable


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_reference_workload_trains_alone_and_as_one_rank_of_several(method, gpus, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE", 16)
    assert measure.run(TINY, method, gpus, samples=2, device="cpu")


def test_samples_are_chosen_just_below_the_wanted_share_of_memory():
    table = MemoryTable([tracer.figures(TINY, "full", accumulating=True)])
    usable = 1.0
    samples = measure.samples_near_the_edge(table, 0, 1, usable)
    peaks = table.peak_bytes(np.zeros(2, int), np.ones(2, int), np.array([samples, samples + 1]) * measure.SAMPLE) / GIB
    assert peaks[0] <= measure.SHARE_OF_MEMORY * usable < peaks[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(capsys):
    assert measure.main() == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out
    assert not measure.OUTPUT.exists()
