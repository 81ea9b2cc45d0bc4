"""GPUs, nodes and tasks that scripts request from schedulers."""

from pathlib import Path

import pytest

from autoconf.jobs.importers.schedulers import Allocation, allocated, environment, requested


def allocation(text: str) -> tuple[int | None, int | None, int | None]:
    return allocated(list(requested(text, "job.sh")))[:3]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("#SBATCH --gres=gpu:a100:4", (1, 4, 4)),
        ("#SBATCH --gres gpu:4,nvme:1  # --nodes=9", (1, 4, 4)),
        ("#SBATCH --gres=gpu", (1, 1, 1)),
        ("#SBATCH --gres=nvme:1", (None, None, None)),
        ("#SBATCH -N2 --gpus-per-node=8", (2, 8, 16)),
        ("#SBATCH -N 2 -G 16", (2, 8, 16)),
        ("#SBATCH --gpus=a100:8", (None, None, 8)),
        ("#SBATCH --gpus=a100:4,v100:4 --nodes=1", (None, None, None)),
        ("#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=4\n#SBATCH --gpus-per-task=1", (2, 4, 8)),
        ("#SBATCH --ntasks=8 --ntasks-per-node=4 --gpus-per-task=1", (2, 4, 8)),
        ("#SBATCH --ntasks=8 --gpus-per-task=h100:1", (None, None, 8)),
        ("#SBATCH --nodes=2-4 --gres=gpu:4", (None, None, None)),
        ("#SBATCH --nodes=2 --gpus-per-node=4 --gpus=4", (None, None, None)),
        ("##SBATCH --nodes=2\n#SBATCH --gres=gpu:2", (1, 2, 2)),
        ("#SBATCH --gres=gpu:2\necho\n#SBATCH --nodes=2", (1, 2, 2)),
        ("#SBATCH --gres=gpu:2\r\n#SBATCH --nodes=2\r", (2, 2, 4)),
        ('#SBATCH --gres="gpu:2"', (1, 2, 2)),
        ('#BSUB -gpu "num=4:mode=exclusive_process:gmodel=NVIDIAA100"\n#BSUB -R "span[hosts=1]"', (1, 4, 4)),
        ('#BSUB -nnodes 2\n#BSUB -gpu "num=6"', (2, 6, 12)),
        ('#BSUB -n 2 -R "span[ptile=1]"\n#BSUB -gpu num=8', (2, 8, 16)),
        ("#PBS -l select=2:ncpus=32:ngpus=4:gpu_type=A100", (2, 4, 8)),
        ("srun -N 2 --gpus-per-node=4 \\\n  --ntasks-per-node=1 torchrun train.py --nodes=7", (2, 4, 8)),
        ("# srun --nodes=2\nls", (None, None, None)),
    ],
)  # fmt: skip
def test_the_counts_of_a_script(lines: str, expected: tuple[int | None, ...]) -> None:
    assert allocation(f"#!/bin/bash\n{lines}\n") == expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [("#SBATCH --gres=gpu:a100:4", "a100"), ("#SBATCH --gpus=h100", "h100"),
     ("#SBATCH --gres=gpu:1g.5gb:2", "1g.5gb"), ("#PBS -l select=1:ngpus=1:gpu_model=a40", "a40"),
     ('#BSUB -gpu "num=1:gmodel=TeslaV100_SXM2_32GB"', "TeslaV100_SXM2_32GB")],
)  # fmt: skip
def test_the_type_of_gpu(line: str, kind: str) -> None:
    assert [request.kind for request in requested(line, "a.sh") if request.kind] == [kind]


def test_the_number_is_found_in_the_text() -> None:
    text = Path(__file__).parents[1].joinpath("data", "job_cases", "more", "in_bash.sbatch").read_text()
    found = list(requested(text, "a"))
    assert [text[r.start : r.start + len(r.number)] for r in found if r.start is not None] == ["1", "8", "1"]


def test_slurms_variables_have_the_requested_counts() -> None:
    requests = list(requested("#SBATCH -N 2 --gpus-per-node=a100:4 --ntasks-per-node=1", "a"))
    assert environment(requests) == {
        "SLURM_NNODES": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "2",
        "SLURM_NPROCS": "2", "SLURM_NTASKS_PER_NODE": "1",
    }  # fmt: skip
    assert environment([]) == {} and allocated([]) == Allocation()
