"""Which tensors count for the GPU, where GPU and host are both the CPU's memory."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="versions are traced with the extra [build], installed on Python 3.11")

import torch

from autoconf.pipeline.validation.zero_devices import GPU, HOST, PeakRecorder, TwoDevices


@pytest.fixture
def recorder():
    recorder = PeakRecorder()
    with recorder, TwoDevices(recorder):
        yield recorder


def test_a_tensor_counts_for_the_gpu_if_the_program_names_it(recorder):
    kept = [torch.zeros(1000, device="cpu:0"), torch.zeros(5000, device="cpu")]
    assert ([tensor.device for tensor in kept], recorder.live) == ([GPU, HOST], 4000)


def test_a_tensor_is_copied_when_it_moves_to_the_other_device_and_only_then(recorder):
    there = torch.ones(1000, device=GPU)
    moved, same = there.to("cpu"), there.to(GPU)
    assert same is there and moved.data_ptr() != there.data_ptr() and moved.device == HOST
    back = moved.to(GPU, torch.float64)
    assert (back.device, recorder.live) == (GPU, 4000 + 8000)
    assert there.cpu().device == there.to(moved).device == HOST


def test_what_is_made_of_tensors_is_where_they_are_and_on_the_gpu_if_any_is(recorder):
    on_host, on_gpu = torch.ones(1000, device="cpu"), torch.ones(1000, device=GPU)
    made = [on_host * 2, torch.empty_like(on_host), on_gpu + on_host]
    assert ([tensor.device for tensor in made], recorder.live) == ([HOST, HOST, GPU], 4000 + 4000)


def test_the_peak_stays_when_a_tensor_is_released(recorder):
    made = torch.ones(1000, device=GPU)
    del made
    assert (recorder.live, recorder.peak) == (0, 4000)
