"""The training steps of ``make measure`` run on the CPU; only their peaks need a GPU."""

import pytest
import typer

for package in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(package, reason="versions are traced with the extra [build], installed on Python 3.11")

import numpy as np
import torch
from on_demand import OnDemand
from small_jobs import small_job

from autoconf.jobs.stack import REFERENCE
from autoconf.memory.model import gpu_memory
from autoconf.memory.units import GIB
from autoconf.pipeline.validation import measure_gpu


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_reference_workload_trains_alone_and_as_one_rank_of_several(method, gpus, monkeypatch):
    monkeypatch.setattr(measure_gpu, "SAMPLE", 16)
    assert measure_gpu.run(small_job(method, gpus, vocabulary=1000), samples=2, device="cpu")


def test_samples_are_chosen_just_below_the_wanted_share_of_memory():
    table = OnDemand(small_job("full", vocabulary=1000).architecture)
    memory = gpu_memory(table, "", "full", REFERENCE, several=False)
    usable = 1.0
    samples = measure_gpu.samples_near_the_edge(memory, 1, usable)
    peaks = memory.peak_bytes(np.ones(2, int), np.array([samples, samples + 1]) * measure_gpu.SAMPLE) / GIB
    assert peaks[0] <= measure_gpu.SHARE_OF_MEMORY * usable < peaks[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_nothing_is_measured_and_a_message_says_so(capsys):
    with pytest.raises(typer.Exit) as ended:
        measure_gpu.main()
    assert ended.value.exit_code == 1
    assert "needs a CUDA GPU" in capsys.readouterr().out
    assert not measure_gpu.OUTPUT.exists()
