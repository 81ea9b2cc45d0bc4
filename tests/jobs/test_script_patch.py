"""``--patch`` of shell scripts changes the counts of the scheduler and of the launcher together, and nothing else."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoconf.cli.main import app
from autoconf.errors import BadInput
from autoconf.jobs.importers.patch import Layout, patch_files, patched
from autoconf.jobs.importers.reader import read_job

TORCHRUN = """#!/bin/bash
#SBATCH --job-name=8
#SBATCH --nodes=2
#SBATCH --gpus-per-node=a100:8   # all 8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
export GPUS_PER_NODE=8
NNODES=$SLURM_NNODES
srun torchrun --nnodes $NNODES --nproc_per_node ${GPUS_PER_NODE} --rdzv_id 8 sft.py \\
  --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048 --per_device_train_batch_size 8
"""
ACCELERATE = """#!/bin/bash\r
#SBATCH -N 2 -G 8\r
#SBATCH -n 2\r
NODES=2\r
GPUS=${GPUS:-4}\r
WORLD=$((NODES*GPUS))\r
srun --nodes=$NODES accelerate launch --num_machines=$NODES --num_processes="$WORLD" --use_fsdp \\\r
  sft.py --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048 --per_device_train_batch_size 4\r
"""
PER_TASK = """#SBATCH --nodes=1 --ntasks-per-node=8 --gpus-per-task=1
srun python sft.py --model_name_or_path m --max_length 8 --per_device_train_batch_size 8
"""
JOB = {"model_name": "llama-7b", "method": "lora", "tokens_per_sample": 512, "per_device_train_batch_size": 1}


def changes(text: str, layout: Layout) -> list[str]:
    """The lines that a patch changes; all others are the same to the byte."""
    before, after = text.splitlines(keepends=True), patched([("a.sh", text)], layout).text.splitlines(keepends=True)
    assert len(before) == len(after)
    return [new.rstrip("\r\n") for old, new in zip(before, after, strict=True) if old != new]


def test_directives_launcher_and_variables_change_together() -> None:
    assert changes(TORCHRUN, Layout(4, 1)) == [
        "#SBATCH --nodes=1", "#SBATCH --gpus-per-node=a100:4   # all 8", "export GPUS_PER_NODE=4",
    ]  # fmt: skip
    assert changes(ACCELERATE, Layout(2, 3)) == ["#SBATCH -N 3 -G 6", "#SBATCH -n 3", "NODES=3", "GPUS=${GPUS:-2}"]
    assert changes(PER_TASK, Layout(2, 1)) == ["#SBATCH --nodes=1 --ntasks-per-node=2 --gpus-per-task=1"]


@pytest.mark.parametrize(
    ("text", "layout", "expected"),
    [
        ("LAUNCH='accelerate launch --num_processes 8'\n# --num_processes 8\n$LAUNCH sft.py --model_name_or_path m\n",
         Layout(2, 1), ["LAUNCH='accelerate launch --num_processes 2'"]),
        ("CUDA_VISIBLE_DEVICES=0,1,2,3 accelerate launch --num_processes=4 sft.py --model_name_or_path m\n",
         Layout(6, 1),
         ["CUDA_VISIBLE_DEVICES=0,1,2,3,4,5 accelerate launch --num_processes=6 sft.py --model_name_or_path m"]),
        ('#BSUB -gpu "num=4:mode=shared"\ntorchrun --standalone --nproc_per_node=gpu sft.py --model_name_or_path m\n',
         Layout(2, 1), ['#BSUB -gpu "num=2:mode=shared"']),
        ("#PBS -l select=2:ngpus=4\nmpirun torchrun --nnodes 2 --nproc_per_node 4 sft.py --model_name_or_path m\n",
         Layout(8, 3),
         ["#PBS -l select=3:ngpus=8", "mpirun torchrun --nnodes 3 --nproc_per_node 8 sft.py --model_name_or_path m"]),
        ("#SBATCH --gres=gpu:4 --nodes=2\nsrun --nodes=2 --ntasks-per-node=1 torchrun --nnodes=2 --nproc_per_node=4 "
         "sft.py --model_name_or_path m\n", Layout(2, 1),
         ["#SBATCH --gres=gpu:2 --nodes=1",
          "srun --nodes=1 --ntasks-per-node=1 torchrun --nnodes=1 --nproc_per_node=2 sft.py --model_name_or_path m"]),
        ("FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 NPROC_PER_NODE=8 llamafactory-cli train --model_name_or_path m\n",
         Layout(2, 1),
         ["FORCE_TORCHRUN=1 NNODES=1 NODE_RANK=0 NPROC_PER_NODE=2 llamafactory-cli train --model_name_or_path m"]),
        ('#BSUB -n 64 -R "span[ptile=32]"\n#BSUB -gpu num=8\nblaunch torchrun --nnodes=2 --nproc_per_node=8 sft.py '
         "--model_name_or_path m\n", Layout(4, 1),
         ['#BSUB -n 32 -R "span[ptile=32]"', "#BSUB -gpu num=4",
          "blaunch torchrun --nnodes=1 --nproc_per_node=4 sft.py --model_name_or_path m"]),
        ("#BSUB -n 16 -gpu num=8\naccelerate launch sft.py --model_name_or_path m\n", Layout(2, 1),
         ["#BSUB -n 16 -gpu num=2"]),
        ("#PBS -l select=1:ncpus=8:ngpus=4\naccelerate launch sft.py --model_name_or_path m\n", Layout(1, 1),
         ["#PBS -l select=1:ncpus=8:ngpus=1"]),
        ("N=2; G=8  # N=2\ntorchrun --nnodes $N --nproc_per_node $G sft.py --model_name_or_path m\n",
         Layout(4, 3), ["N=3; G=4  # N=2"]),
    ],
)  # fmt: skip
def test_counts_change_where_they_are_written(text: str, layout: Layout, expected: list[str]) -> None:
    assert changes(text, layout) == expected


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([TORCHRUN, ACCELERATE]), st.builds(Layout, st.integers(1, 16), st.integers(1, 64)))
def test_a_patched_script_has_exactly_the_layout_when_it_is_read(text: str, layout: Layout) -> None:
    import tempfile

    after = patched([("a.sh", text)], layout).text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.sh")
        path.write_bytes(after.encode())
        counts = read_job([str(path)], {}).counted
    assert (counts.per_worker, counts.workers) == layout
    again = Layout(8, layout.workers)
    assert patched([("a.sh", after)], again).text == patched([("a.sh", text)], again).text


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ("mpirun -np 2 --map-by ppr:1:node", "mpirun -np 2 would have to be 1; change it by hand"),
        ("mpiexec -n 2 -ppn 1", "mpiexec -n 2 would have to be 1"),
        ("jsrun -n 2 -r 1 -g 4", "jsrun -n 2 would have to be 1"),
        ("jsrun -n 1 -g 4", "jsrun -g 4 would have to be 3"),
    ],
)
def test_numbers_of_what_starts_the_launcher_are_not_left_behind(starts: str, message: str) -> None:
    text = f"{starts} torchrun --nnodes 2 --nproc_per_node 4 sft.py --model_name_or_path m -n 7\n"
    with pytest.raises(BadInput, match=message):
        patched([("a.sh", text)], Layout(3, 1))
    as_before = "mpirun -np 2 \\\n  torchrun --nnodes 2 --nproc_per_node 4 sft.py --model_name_or_path m -n 7\n"
    assert "--nproc_per_node 3" in patched([("a.sh", as_before)], Layout(3, 2)).text


def test_processes_that_mpirun_starts_are_not_left_behind() -> None:
    text = "#BSUB -n 4 -gpu num=1/task\nmpirun -n 4 python sft.py --model_name_or_path m --max_length 8\n"
    with pytest.raises(BadInput, match="mpirun -n 4 would have to be 2; change it by hand"):
        patched([("a.lsf", text)], Layout(2, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#SBATCH --nodes=2", "#SBATCH --nodes=2-4", "cannot be read together"),
        ("a100:8", "a100", "the launcher starts"),
        ("export GPUS_PER_NODE=8", "export GPUS_PER_NODE=$(nvidia-smi -L | wc -l)", "is not a number"),
        ("export GPUS_PER_NODE=8", "GPUS_PER_NODE=8\nexport WORLD_SIZE=16", "WORLD_SIZE: counts GPUs, and not for"),
        ("GPUS_PER_NODE=8", "GPUS_PER_NODE=8; BS=$((GPUS_PER_NODE / 2))", ""),
        ("--ntasks-per-node=1", "--ntasks-per-node=8", "8 tasks per node, where 1 are expected"),
        ("--max_length 2048", "--gradient_accumulation_steps $((64 / GPUS_PER_NODE))", "would change with"),
        ("export GPUS_PER_NODE=8", "if a; then GPUS_PER_NODE=8; else GPUS_PER_NODE=8; fi", "would not give 4 GPUs"),
        ("srun torchrun", "torchrun --nproc_per_node=8 x.py --model_name_or_path m\nsrun torchrun", "2 commands"),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_alone_is_refused(old: str, new: str, message: str) -> None:
    text = TORCHRUN.replace(old, new)
    if not message:
        assert "BS=" in patched([("a.sh", text)], Layout(4, 1)).text
        return
    with pytest.raises(BadInput, match=message):
        patched([("a.sh", text)], Layout(4, 1))


def test_a_script_for_one_node_gets_no_second_one() -> None:
    with pytest.raises(BadInput, match="the script is for one node"):
        patched([("a.sh", PER_TASK)], Layout(8, 2))
    one = "accelerate launch --num_processes 2 --multi_gpu sft.py --model_name_or_path m\n"
    with pytest.raises(BadInput, match="accelerate refuses --multi_gpu on one GPU"):
        patched([("a.sh", one)], Layout(1, 1))


def test_a_config_that_counts_as_well_is_named(tmp_path: Path) -> None:
    (tmp_path / "acc.yaml").write_text("distributed_type: FSDP\nnum_processes: 8\n")
    script = tmp_path / "a.sh"
    script.write_text(
        "accelerate launch --config_file acc.yaml --num_processes 8 sft.py --model_name_or_path m --max_length 9\n"
    )
    with pytest.raises(BadInput, match=r"acc\.yaml:2 num_processes: counts GPUs as well"):
        patched([(str(script), script.read_text())], Layout(2, 1))
    (tmp_path / "acc.yaml").write_text("distributed_type: FSDP\n")
    assert "--num_processes 2 " in patched([(str(script), script.read_text())], Layout(2, 1)).text


def test_the_command_writes_the_script(tmp_path: Path) -> None:
    path = tmp_path / "job.sbatch"
    path.write_bytes(ACCELERATE.encode())
    path.chmod(0o444)
    options = ["--gpu-model=NVIDIA-H100-80GB-HBM3", "--sharding=fsdp2", "--max-gpus=64", "--gpus-per-worker=4"]
    result = CliRunner().invoke(
        app, ["recommend", "--job", str(path), *options, "--patch", "-o", str(tmp_path / "new")]
    )
    assert result.exit_code == 0, result.stderr
    answer = CliRunner().invoke(app, ["job", str(tmp_path / "new"), "--json"]).stdout
    assert result.stderr.startswith(f"{path}: 8 -> ") and '"number_gpus"' in answer
    assert path.read_bytes() == ACCELERATE.encode()


def test_a_manifest_that_is_not_yaml_is_no_script(tmp_path: Path) -> None:
    manifest = tmp_path / "job"
    command = "torchrun --nproc_per_node=4 sft.py --model_name_or_path m"
    manifest.write_text(f"a:\n  apiVersion: v1\n  kind: TrainJob\n  args:\n  - |\n    {command}\n\n  ---\n  b: 1\n")
    for read in (lambda: read_job([str(manifest)], {}), lambda: patch_files([str(manifest)], Layout(2, 1))):
        with pytest.raises(BadInput, match=r"job:\d+: not YAML: .*, as a manifest of Kubernetes has to be"):
            read()


def test_one_of_several_trainings_is_read_but_not_patched(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("torchrun --nproc_per_node 8 train.py --max_length 512\ntorchrun --nproc_per_node 4 train.py\n")
    with pytest.raises(BadInput, match=r"run\.sh:2: a script with several trainings is not patched"):
        patch_files([f"{script}:2"], Layout(2, 1))
