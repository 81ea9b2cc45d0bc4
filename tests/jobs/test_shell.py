"""Shell scripts are followed as in bash; uncertain values are named if they matter."""

import subprocess
import sys
from pathlib import Path

import pytest

from autoconf.errors import BadInput
from autoconf.jobs.importers.reader import read_job

SFT = "trl sft --model_name_or_path m --use_peft"


@pytest.fixture
def fields(tmp_path: Path):
    def read(script: str, **options) -> dict:
        (tmp_path / "run").write_text(script)
        return read_job([str(tmp_path / "run")], options).fields

    return read


@pytest.mark.parametrize(
    "script",
    [
        f"L=64\n{SFT} --max_length $L", f"{SFT} --max_length ${{L:-64}}", f"A=(--max_length 64)\n{SFT} \"${{A[@]}}\"",
        f"N=8\n{SFT} --max_length $((N * 16 / 2))", f"f() {{ {SFT} --max_length $1; }}\nf 64",
        f"case 7b in 7b) L=64;; *) L=8;; esac\n{SFT} --max_length $L", f"for L in 64; do {SFT} --max_length $L; done",
        f"[ -n \"$X\" ] || exit 1\nif x; then exit 2; fi\n{SFT} --max_length 64",
        f"C=\"{SFT} --max_length 64\"\neval $C",
        f"nohup timeout 2h env X=1 srun -N 1 {SFT} --max_length 64 > log 2>&1 &",
        f"bash -euo pipefail -c '{SFT} --max_length 64'",
        f"docker run --gpus all -v $PWD:/w image:1 {SFT} --max_length 64", f"{SFT} --max_length 8 --max_length 64",
        f"uv run {SFT} --max_length 64", f"{SFT} --max_length 64 # --max_length 8", f"{SFT} \\\n  --max_length 64\n",
        f"A='--use_peft'\nB='--max_length 64'\nbash -c \"{SFT} $A $B\"", f"A=6\nB=4\n{SFT} --max_length ${{A}}${{B}}",
        f"A=1\nB=2\nC=\"$A $B\"\nD=${{C#1 }}\n{SFT} --max_length $((D * 32))",
        f"{SFT} --max_length 64 \\\n", f"{SFT} --max_length 64 \\",
        f"{SFT} --max_length 64 \\\n\necho done", f"python submit.py --gpus 8 -- {SFT} --max_length 64",
        f"cat > c.yaml <<EOF\nmax_length: 64\ndataset_name: d\nEOF\n{SFT} --config c.yaml",
    ],
)  # fmt: skip
def test_a_length_is_read_as_bash_gives_it(fields, script: str) -> None:
    found = fields(script)
    assert (found["method"], found["tokens_per_sample"]) == ("lora", 64)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"{SFT} --max_length $1", r"\$1 \(not set in the file\)"),
        (f"if x; then L=1; else L=2; fi\n{SFT} --max_length $L", r"\$L \(1 or 2\)"),
        (f'L=1\n[ -n "$X" ] && L=2\n{SFT} --max_length $L', r"\$L \(1 or 2\)"),
        (f"for L in 1 2; do {SFT} --max_length $L; done", r"\$L \(1 or 2\)"),
        (f"L=$(cat length)\n{SFT} --max_length $L", "the output of a command"),
        (f"L=1\nsource job.env\n{SFT} --max_length $L", r"\$L \(job.env may change it\)"),
        (f"{SFT} --max_length 8 $MORE", r"\$MORE \(not set in the file\) is not certain"),
        (f"{SFT} --config missing.yaml", "no such file"),
        (f"{SFT} --config $C", "the name of the file is not certain"),
    ],
)
def test_uncertain_values_are_named(fields, script: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        fields(script)


def test_an_abbreviated_option_counts(fields) -> None:
    assert fields(f"{SFT} --per_device_train_b 3 --max_length 8")["per_device_train_batch_size"] == 3


def test_the_parser_of_trl_takes_any_option_that_is_unique(fields) -> None:
    found = fields(f"{SFT} --max_len 8 --load_in_4 True --use_lig True --lora_d 0.1")
    assert (found["tokens_per_sample"], found["method"], found["loss"]) == (8, "qlora", "chunked")
    with pytest.raises(BadInput, match="--load_in_4"):
        fields("python train.py --model_name_or_path m --load_in_4 True", tokens_per_sample=8, batch_size=1)


def test_slurms_requests_are_shown(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"#!/bin/bash\n#SBATCH --gres=gpu:4\n#SBATCH --nodes 2\nsrun {SFT}\n")
    notes = read_job([str(tmp_path / "run")], {}).read
    assert any("4 GPUs per node" in line for line in notes) and any("2 nodes" in line for line in notes)


def test_characters_outside_ascii_do_not_end_the_process() -> None:
    """The grammar of bash crashes on such texts in about four of ten processes, unless it gets ASCII alone."""
    code = """if True:
        import random
        from contextlib import suppress
        from autoconf.errors import BadInput
        from autoconf.jobs.importers.shell import follow
        draw = random.Random(0)
        for _ in range(2000):
            text = "{" + "".join(draw.choices("\\U00105659\\u0172\\U00015883 \\u02dc\\u764c,b~", k=draw.randint(8, 60)))
            with suppress(BadInput):
                follow(text, "run.sh", {})
    """
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(6)]
    assert [child.wait() for child in children] == [0] * 6


def test_names_outside_ascii_are_kept(fields) -> None:
    found = fields(f"# größer\nÜ=1\nL=64\n{SFT} --model_name_or_path Müller/7b-模型 --max_length $L")
    assert found["model_name"] == "Müller/7b-模型" and found["tokens_per_sample"] == 64
