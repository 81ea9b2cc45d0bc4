"""Public out-of-memory reports are replayed on the stacks that they allow."""

from __future__ import annotations

from pathlib import Path

import pytest

for package in ("torch", "transformers", "peft"):
    pytest.importorskip(package, reason="jobs are recorded with the extra [build], installed on Python 3.11")

import typer
from small_jobs import small_job

from autoconf.memory.replay import Action, Program
from autoconf.pipeline.replay import report_table, reports
from autoconf.pipeline.replay.report_table import Comparison, Found, Message, Outcome
from autoconf.pipeline.replay.reports import Job, Report

SHARDED = {"torch_dtype": "float32", "mixed_precision": "bf16", "sharding": "fsdp1"}
MESSAGE = Message(tried_mib=388, allocated_gib=21.91, unallocated_gib=0.18, free_gib=0.3)
HIGH = Outcome(512, 22.0, 0.3, "step 1")
LOW = Outcome(388, 21.0, 0.2, "step 2")


def report(message: Message = MESSAGE, **job) -> Report:
    stated = {"model": "small", "method": "full", "gpus": 2, "samples": 2, "tokens": (509,), "stack": SHARDED, **job}
    return Report(name="small full", source="https://example.org/1", message=message, job=Job(**stated))


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**reports.architectures(), "small": small_job("full").architecture}
    monkeypatch.setattr(reports, "architectures", lambda: known)


def test_each_report_has_a_source_and_a_job_or_a_reason() -> None:
    listed = reports.reports()
    assert len(listed) >= 20
    assert len({one.source for one in listed}) == len({one.name for one in listed}) == len(listed)
    assert all(one.source.startswith("https://") for one in listed)
    for one in listed:
        assert (one.job is None) == bool(one.reason) == (not one.assumed)
        if one.job is not None:
            assert list(reports.stacks(one))


def test_a_job_stands_for_all_values_that_are_open() -> None:
    several = report(
        tokens=(64, 509),
        accumulation=(1, 16),
        config={"vocab_size": 96},
        open={"gradient_checkpointing": ("none", "reentrant")},
    )
    found = list(reports.stacks(several))
    assert len(found) == 8
    assert {(batches.tokens_per_sample, batches.accumulation) for _, batches in found} == {
        (64, 1), (64, 2), (509, 1), (509, 2),
    }  # fmt: skip
    assert {job.stack.gradient_checkpointing for job, _ in found} == {"none", "reentrant"}
    assert all(job.stack.gradient_accumulation == (batches.accumulation > 1) for job, batches in found)
    assert {job.architecture.config["vocab_size"] for job, _ in found} == {96}


def test_a_replay_fails_on_the_memory_that_the_report_had() -> None:
    little = Message(tried_mib=1, allocated_gib=0.012, unallocated_gib=0.004, free_gib=0.002)
    (found,) = reports.replayed(report(little, gpus=1, stack={}))
    assert found is not None and found.place.startswith("step 1")
    assert found.allocated_gib + found.unallocated_gib <= little.capacity_gib
    assert found.allocated_gib + found.unallocated_gib + found.tried_mib / 1024 > little.capacity_gib
    assert reports.replayed(report(gpus=1, stack={})) == [None]


def test_flat_parameters_give_the_optimizer_one_parameter_for_each_unit() -> None:
    """``zeros_like`` then asks for the states of a whole layer at once."""
    states: dict[bool, list[int]] = {}
    for separate in (True, False):
        ((job, batches),) = reports.stacks(report())
        with reports.as_given(report(use_orig_params=separate).job):
            program = reports.record(job, batches, updates=1)
        places = [program.places[event.place] for event in program.events]
        states[separate] = [
            event.nbytes
            for event, place in zip(program.events, places, strict=True)
            if place.part == "optimizer" and "zeros_like" in place.op and event.nbytes > 0
        ]
    # Two states for each of two layers and the rest.
    assert len(states[False]) == 2 * 3 < len(states[True])
    assert sum(states[False]) == pytest.approx(sum(states[True]), rel=0.01)


def test_a_single_gpu_under_fsdp1_keeps_all_parameters() -> None:
    """A job that dies before its first step is replayed until then."""
    several = report(only_loaded=True)
    one = report(only_loaded=True, gpus=1)
    held = {}
    for each in (several, one):
        ((job, batches),) = reports.stacks(each)
        with reports.as_given(each.job):
            program = reports.record(job, batches, updates=0)
        assert {place.when for place in program.places} <= {"loading"}
        held[each.job.gpus] = reports.replay(program, timeline=True).timeline[-1, 0]
    assert held[1] == pytest.approx(2 * held[2], rel=0.05)
    little = Message(tried_mib=1, allocated_gib=0.002, unallocated_gib=0.0, free_gib=0)
    (found,) = reports.replayed(report(little, only_loaded=True, gpus=1))
    assert found is not None and found.place.startswith("loading, wrapped")


def most_gathered(program: Program) -> int:
    """The most bytes of gathered units at a time."""
    held: dict[int, int] = {}
    most = 0
    for event in program.events:
        if event.action == Action.FREE:
            held.pop(event.block, None)
        elif event.action == Action.ALLOCATE and program.places[event.place].op == "resize_":
            held[event.block] = event.nbytes
            most = max(most, sum(held.values()))
    return most


def test_a_backward_pass_without_prefetch_gathers_one_layer_at_a_time() -> None:
    gathered = {}
    for prefetches in (True, False):
        ((job, batches),) = reports.stacks(report())
        with reports.as_given(report(prefetches=prefetches).job):
            gathered[prefetches] = most_gathered(reports.record(job, batches, updates=1))
    assert 0 < gathered[False] < gathered[True]


def sizes(**given) -> set[int]:
    """The sizes of blocks of a small job in its first step."""
    ((job, batches),) = reports.stacks(report(gpus=1, stack={}))
    with reports.as_given(report(gpus=1, **given).job):
        return {event.nbytes for event in reports.record(job, batches, updates=1).events}


def test_eager_attention_holds_float32_scores_of_all_pairs_of_tokens() -> None:
    heads = small_job("full").architecture.config["num_attention_heads"]
    scores = 4 * 2 * heads * 509**2
    assert scores in sizes(eager=True) and scores not in sizes()


def test_a_loss_that_shifts_logits_holds_a_copy_of_them() -> None:
    """One more block of float32 logits, less the last token of each sample."""
    shifted = 4 * 2 * 508 * small_job("full").architecture.config["vocab_size"]
    assert shifted in sizes(shifts_logits=True) and shifted not in sizes()


def compared(message: Message, *outcomes: Outcome | None) -> Comparison:
    return Comparison("small full", "https://example.org/1", message, Found.of(outcomes))


def test_printed_figures_are_compared_with_the_bounds_over_failing_stacks() -> None:
    one = compared(MESSAGE, HIGH, None, LOW)
    assert one.found.bounds["allocated_gib"] == ("21.00", "22.00")
    assert (one.off("allocated_gib"), one.off("unallocated_gib")) == (0, pytest.approx(0.02))
    row = one.row()
    assert (row["report"], row["stacks that fail"]) == ("[small full](https://example.org/1)", "2 of 3")
    assert list(row.values())[1:7] == ["388", "388 to 512", "21.91", "21.00 to 22.00", "0.18", "0.20 to 0.30"]
    assert row["where"] == "step 1; step 2"
    runs = compared(MESSAGE, None)
    assert list(runs.row().values())[2::2] == ["-", "-", "-", "-"]
    assert report_table.summary([one, runs]).splitlines() == [
        "1 of 2 reports run out of memory in a replay of some stack.",
        "tried, MiB: 1 printed figures are within the bounds, the median is 0 outside, the largest 0.",
        "allocated, GiB: 1 printed figures are within the bounds, the median is 0.00 outside, the largest 0.00.",
        "unallocated, GiB: 0 printed figures are within the bounds, the median is 0.02 outside, the largest 0.02.",
    ]
    assert report_table.summary([runs]) == "0 of 1 reports run out of memory in a replay of some stack."


def test_a_size_that_is_printed_in_gib_is_known_to_half_of_its_last_digit() -> None:
    printed = {"allocated_gib": 22.0, "unallocated_gib": 0.3, "free_gib": 0}
    in_gib = compared(Message(tried_mib=25702, **printed), Outcome(25706, 22.0, 0.3, "loading"))
    assert in_gib.off("tried_mib") == 0
    assert compared(Message(tried_mib=508, **printed), HIGH).off("tried_mib") == 4


def test_what_replays_found_is_kept_for_each_replayed_report(tmp_path: Path) -> None:
    found = {"https://example.org/1": Found.of([HIGH, None, LOW]), "https://example.org/2": Found.of([None])}
    report_table.keep(found, tmp_path / "kept.csv")
    assert report_table.kept(tmp_path / "kept.csv") == found
    assert list(report_table.kept()) == [one.source for one in reports.reports() if one.job is not None]


def test_the_command_prints_both_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed = Report(name="other small", source="https://example.org/2", message=MESSAGE, reason="8-bit base model")
    monkeypatch.setattr(reports, "reports", lambda: [report(), listed])
    monkeypatch.setattr(reports, "replayed", lambda _: [HIGH])
    monkeypatch.setattr(reports, "kept", dict)
    monkeypatch.setattr(reports, "keep", lambda found: found)
    reports.main(["SMALL"])
    printed = capsys.readouterr().out
    assert "| [small full](https://example.org/1) | 388 | 512 |" in printed
    assert "| [other small](https://example.org/2) | 388 | 21.91 | 0.18 | 8-bit base model |" in printed
    monkeypatch.setattr(reports, "kept", lambda: {"https://example.org/1": Found.of([LOW])})
    reports.main(["full"], show=True)
    printed = capsys.readouterr().out
    assert "| [small full](https://example.org/1) | 388 | 388 |" in printed and "reached a step" not in printed
    with pytest.raises(typer.Exit) as ended:
        reports.main(["small", "missing"])
    assert ended.value.exit_code == 2 and "small and missing" in capsys.readouterr().err


def test_the_document_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    document = Path(__file__).parents[2] / "docs" / "how-it-works" / "allocator.md"
    shown = {" ".join(line.split()) for line in document.read_text(encoding="utf-8").splitlines()}
    reports.main(show=True)
    printed = capsys.readouterr().out
    assert "Of those that reached a step" in printed
    assert {" ".join(line.split()) for line in printed.splitlines()} <= shown
