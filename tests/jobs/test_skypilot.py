"""Tasks of SkyPilot: their command, with the GPUs and nodes that they request."""

from pathlib import Path

import pytest

from autoconf.errors import BadInput
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
