"""``--patch`` of scripts that submit a job with Kubeflow's SDK changes the literals of its counts, and nothing else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, OtherCounts, patched
from autoconf.jobs.importers.reader import read_job

SDK = Path(__file__).parents[1] / "data" / "job_readers" / "kubeflow_sdk"


def changes(text: str, layout: Layout, nodes_only: bool = False) -> list[str]:
    before, after = text.splitlines(), patched([("a.py", text)], layout, nodes_only).text.splitlines()
    return [new.strip() for old, new in zip(before, after, strict=True) if old != new]


def test_nodes_and_gpus_change_where_their_literals_are() -> None:
    assert changes((SDK / "custom_trainer.py").read_text(), Layout(2, 1)) == [
        "num_nodes=1,",
        'resources_per_node={"cpu": 8, "memory": "64Gi", "gpu": 2},',
    ]


def test_the_older_client_has_workers_and_processes() -> None:
    assert changes((SDK / "older_train.py").read_text(), Layout(8, 1)) == [
        "num_workers=1,",
        "num_procs_per_worker=8,",
        'resources_per_worker={"gpu": 8, "cpu": 5, "memory": "10G"},',
    ]


def test_names_quotes_and_letters_of_several_bytes() -> None:
    text = (
        "from kubeflow.trainer import CustomTrainer\n"
        "NODES = 4\n"
        "RESOURCES = {'größe': 'ä', 'nvidia.com/gpu': \"8\"}\n"
        "job = client.train(trainer=CustomTrainer(func=f, num_nodes=NODES, resources_per_node=RESOURCES))\n"
    )
    assert changes(text, Layout(4, 2)) == ["NODES = 2", "RESOURCES = {'größe': 'ä', 'nvidia.com/gpu': \"4\"}"]


def test_nodes_only_leaves_the_gpus_of_a_node() -> None:
    text = (SDK / "custom_trainer.py").read_text()
    assert changes(text, Layout(4, 1), nodes_only=True) == ["num_nodes=1,"]
    with pytest.raises(OtherCounts, match="--nodes-only changes only counts of nodes"):
        patched([("a.py", text)], Layout(2, 1), nodes_only=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_nodes=2", "num_nodes=nodes()", "the number of nodes must be a literal"),
        ("num_nodes=2,", "", "the number of nodes must be a literal"),
        ('"gpu": 4', '"tpu": 4', "the GPUs of a node must be a literal"),
        ("CustomTrainer(", "Other(", "submits no job with Kubeflow's SDK"),
        ('"batch": 4}', '"batch": COUNT}', "another setting would change with the counts"),
    ],
)
def test_what_cannot_be_changed_alone_is_refused(old: str, new: str, message: str) -> None:
    text = (SDK / "custom_trainer.py").read_text()
    assert old in text
    text = text.replace(old, new)
    if "COUNT" in new:
        text = text.replace("num_nodes=2", "num_nodes=COUNT").replace("client = ", "COUNT = 4\nclient = ")
    with pytest.raises(BadInput, match=message):
        patched([("a.py", text)], Layout(2, 1))


def test_the_command_prints_a_script_that_requests_the_recommended_gpus(tmp_path: Path) -> None:
    script = tmp_path / "submit.py"
    script.write_text((SDK / "custom_trainer.py").read_text())
    run = CliRunner().invoke(app, ["recommend", "--job", str(script), "--gpu-model", "H100", "--patch"])
    assert run.exit_code == 0, run.stderr
    script.write_text(run.stdout)
    assert read_job([str(script)], {}).counted.gpus == 1
    assert "8 -> 1 GPUs" in run.stderr
