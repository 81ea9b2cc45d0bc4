"""The memory outside PyTorch, from its out-of-memory messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from autoconf.errors import BadInput
from autoconf.pipeline.catalog import gpu_types
from autoconf.pipeline.replay import outside_pytorch
from autoconf.pipeline.replay.judge import overhead_gib
from autoconf.pipeline.replay.outside_pytorch import Message, overhead

PAGE = Path(__file__).parents[2] / "docs" / "how-it-works" / "allocator.md"
A100, H200, T4 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-H200", "Tesla-T4"


def message(outside_gib: float, capacity_gib: float = 79.15, gpus: str = "several", task: str = "training") -> Message:
    source = "https://github.com/a/b/issues/1"
    return Message(source, task, "", gpus, "ddp", capacity_gib, 50 + outside_gib, 45.0, 5.0)


def given(monkeypatch: pytest.MonkeyPatch, *reports: Message) -> None:
    monkeypatch.setattr(outside_pytorch, "messages", lambda: reports)


def test_each_message_has_an_address_and_figures_that_can_be() -> None:
    found = outside_pytorch.messages()
    assert len(found) >= 60 and sum(one.task == "training" for one in found) >= 48
    for one in found:
        assert one.source.startswith("https://github.com/"), one
        assert one.task in ("training", "other"), one
        assert one.gpus in ("one", "several", "unknown"), one
        assert one.library in ("none", "ddp", "fsdp", "deepspeed", "unknown"), one
        assert 0.09 < one.outside_gib < 6 and one.in_use_gib <= one.capacity_gib, one
        assert one.several or one.library in ("none", "unknown"), one
    figures = [(one.capacity_gib, one.in_use_gib, one.allocated_gib, one.unallocated_gib) for one in found]
    assert len(set(figures)) == len(figures), "the same message twice"


def test_a_line_of_the_file_gives_the_difference_of_its_quoted_figures() -> None:
    (one,) = [message for message in outside_pytorch.messages() if message.source.endswith("LlamaFactory/issues/5590")]
    assert (one.gpus, one.library, one.capacity_gib) == ("several", "deepspeed", 79.15)
    assert one.outside_gib == pytest.approx(77.81 - 57.88 - 17.62)


def test_a_class_with_enough_messages_has_its_own_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    of_class = [message(gib) for gib in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)]
    given(monkeypatch, *of_class, message(5.0, 139.8), message(3.0, gpus="one"), message(4.0, task="other"))
    found = overhead(8, A100)
    assert found.gib == 1.9
    assert found.basis == (
        "the 90th percentile of 11 public reports of jobs on several GPUs of the class A100 80 GB, A800, H100"
    )


def test_a_class_with_few_messages_has_the_larger_of_its_largest_and_the_general_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given(monkeypatch, *[message(1.0)] * 20, message(4.0, 139.8), message(0.2, 14.75))
    assert (overhead(2, H200).gib, overhead(2, T4).gib) == (4.0, 1.0)
    assert overhead(2, H200).basis.startswith("the most of 1 public reports of jobs on several GPUs of the class H100")
    assert (
        overhead(2, T4).basis == "the 90th percentile of 21 public reports of jobs on several GPUs of up to 79.15 GiB"
    )
    assert overhead(2).basis == "the 90th percentile of 22 public reports of jobs on several GPUs of any type"


def test_a_class_with_few_messages_does_not_have_the_figure_of_larger_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, *[message(0.5, 39.5)] * 10, *[message(4.0)] * 20)
    found = overhead(2, "L40S")
    assert found.gib == 0.5
    assert found.basis == "the 90th percentile of 10 public reports of jobs on several GPUs of up to 48 GiB"


def test_a_report_without_a_number_of_gpus_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, *[message(gib, gpus="unknown") for gib in (0.4, 0.5, 0.6, 0.7, 0.8)], message(2.0))
    assert overhead(1, A100).gib == 0.76 and "of 5 public reports of jobs on one GPU" in overhead(1, A100).basis


@pytest.mark.parametrize("gpu", gpu_types())
def test_each_type_has_a_class_and_more_outside_on_several_gpus(gpu: str) -> None:
    assert outside_pytorch.gpu_class(gpu_types()[gpu].usable_gib) != outside_pytorch.OTHER
    assert 0 < overhead_gib(1, gpu) < overhead_gib(8, gpu) < gpu_types()[gpu].usable_gib / 4


def test_an_unknown_type_is_bad_input() -> None:
    with pytest.raises(BadInput, match="gpu_type: A200 is not one of NVIDIA-A100-SXM4-80GB, "):
        overhead_gib(1, "A200")


def test_an_unknown_unit_is_an_error() -> None:
    assert outside_pytorch.size_gib("512.00 KiB") == 2.0**-11
    with pytest.raises(ValueError, match="unit 'GB' is not one of GiB, MiB, KiB, bytes"):
        outside_pytorch.size_gib("1.5 GB")


def test_the_page_has_the_table_that_the_command_prints() -> None:
    app = typer.Typer()
    app.command()(outside_pytorch.main)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0 and done.stdout.startswith("| task | GPU | GPUs | library | messages |")
    assert done.stdout in PAGE.read_text(encoding="utf-8")
