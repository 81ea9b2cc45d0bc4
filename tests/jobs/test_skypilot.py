"""Tasks of SkyPilot: their command, with the GPUs and nodes that they request."""

from pathlib import Path

import pytest

from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, OtherCounts, patched
from autoconf.jobs.importers.reader import read_job

TASK = """name: tune
resources:
  accelerators: H100:8
num_nodes: 2
envs: {MODEL: Qwen/Qwen2.5-7B}
setup: pip install trl
run: |
  torchrun --nnodes=$SKYPILOT_NUM_NODES --nproc_per_node=$SKYPILOT_NUM_GPUS_PER_NODE \\
    sft.py --model_name_or_path $MODEL --max_length 2048 --packing --per_device_train_batch_size 2
"""


def read(folder: Path, text: str):
    (folder / "task.yaml").write_text(text)
    return read_job([str(folder / "task.yaml")], {})


def test_a_task_gives_the_job_and_its_counts(tmp_path: Path) -> None:
    job = read(tmp_path, TASK)
    assert (job.fields["model_name"], job.fields["tokens_per_sample"]) == ("Qwen/Qwen2.5-7B", 2048)
    assert (job.counted.gpus, job.counted.workers) == (16, 2)
    records = [request.record() for request in job.requests]
    assert [(record["value"], record["line"], record["key"]) for record in records] == [
        ("H100:8", 3, "resources.accelerators"), ("2", 4, "num_nodes"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accelerators", "gpus"),
    [("H100", 2), ("{H100: 4}", 8), ("[H100:8, A100:8]", None), ("{H100: 8, A100: 8}", None)],
)
def test_the_ways_to_write_accelerators(tmp_path: Path, accelerators: str, gpus: int | None) -> None:
    assert read(tmp_path, TASK.replace("H100:8", accelerators)).counted.gpus == gpus


def test_a_task_that_starts_no_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a task of SkyPilot without a command that starts a training"):
        read(tmp_path, "resources: {accelerators: H100:8}\nrun: nvidia-smi\n")


TORCHRUN = TASK.replace("--nproc_per_node=$SKYPILOT_NUM_GPUS_PER_NODE", "--nproc_per_node=8")


def changes(text: str, layout: Layout) -> list[str]:
    """The lines that a patch changes; all others are the same."""
    before, after = text.splitlines(), patched([("task.yaml", text)], layout).text.splitlines()
    assert len(before) == len(after)
    return [new.strip() for old, new in zip(before, after, strict=True) if old != new]


@pytest.mark.parametrize(
    ("text", "layout", "expected"),
    [
        (TASK, Layout(4, 1), ["accelerators: H100:4", "num_nodes: 1"]),
        (
            TASK.replace("H100:8", "{H100: 8}  # each"),
            Layout(2, 3),
            ["accelerators: {H100: 2}  # each", "num_nodes: 3"],
        ),
        (
            TORCHRUN,
            Layout(4, 2),
            ["accelerators: H100:4", "torchrun --nnodes=$SKYPILOT_NUM_NODES --nproc_per_node=4 \\"],
        ),
        (
            "resources: {accelerators: L4}\nrun: trl sft --num_processes 1 --model_name_or_path m --max_length 8\n",
            Layout(2, 1),
            ["resources: {accelerators: L4:2}", "run: trl sft --num_processes 2 --model_name_or_path m --max_length 8"],
        ),
        ("resources: {accelerators: H100:8}\nrun: ./train.sh\n", Layout(1, 1), ["resources: {accelerators: H100:1}"]),
    ],
)
def test_a_patch_changes_the_counts_of_a_task_and_of_its_launcher(text: str, layout: Layout, expected: list) -> None:
    assert changes(text, layout) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TASK.replace("H100:8", "[H100:8, A100:8]"), "resources.accelerators: .*one type of accelerator"),
        (TASK.replace("num_nodes: 2\n", ""), "num_nodes: is missing; --patch changes a number that is there"),
        (
            "resources: {accelerators: H100:8}\nnum_nodes: 2\nrun: ./go.sh --gpus 8\n",
            "'--gpus 8' counts GPUs in a command that is not",
        ),
        (TASK.replace("$SKYPILOT_NUM_GPUS_PER_NODE", "$N").replace("{MODEL", "{N: 8, MODEL"), "would not give 8"),
    ],
)
def test_a_task_whose_counts_cannot_change_alone_is_not_patched(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        patched([("task.yaml", text)], Layout(4, 2))


def test_nodes_only_keeps_the_gpus_of_a_node() -> None:
    text = patched([("task.yaml", TASK)], Layout(8, 4), nodes_only=True).text
    assert (text.count("num_nodes: 4"), text.count("H100:8")) == (1, 1)
    with pytest.raises(OtherCounts, match=r"accelerators: .* would have to become"):
        patched([("task.yaml", TASK)], Layout(4, 4), nodes_only=True)
