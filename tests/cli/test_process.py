"""The command `ado-autoconf` as a process: its streams, signals, and a full disk."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from job_tables import GOOD, HEADER, ONE_JOB, rows, table
from terminal import COMMAND, on_a_terminal

from autoconf.cli.ask import CHUNK


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $A is the command; the exit code is that of the line's first command."""
    environment = {**os.environ, "A": COMMAND, "FORCE_COLOR": "1", "LC_ALL": "C"}
    environment.pop("PYTHONUNBUFFERED", None)  # what remains in a buffer at the end can fail, too
    line = f"{command}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)


def test_a_pipe_gets_plain_data_and_may_close_early(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(table(*[GOOD] * 40_000))
    done = shell("$A recommend --csv jobs.csv | head -2", tmp_path)
    assert done.stdout.splitlines()[1] == f"{GOOD},1,2,1,,ok"
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "command", ["versions", "versions --json", "--help", "plot answers.csv -o -", "recommend --csv no.csv 2>&1"]
)
def test_a_closed_pipe_is_not_an_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "answers.csv").write_text(table(f"{GOOD},1,2,1", header=f"{HEADER},can_recommend,gpus,workers"))
    done = shell(f"$A {command} | true", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "", "")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"recommend {' '.join(ONE_JOB)} >&-", "standard output: cannot write it: it is closed"),
        ("versions >&-", "standard output: cannot write it: it is closed"),
        ("plot answers.csv -o - >&-", "standard output: cannot write it: it is closed"),
        ("recommend --csv - <&-", "standard input: cannot read it: it is closed"),
        ("plot - -o picture.png <&-", "standard input: cannot read it: it is closed"),
    ],
)
def test_a_closed_standard_stream_is_bad_input(tmp_path: Path, command: str, message: str) -> None:
    (tmp_path / "answers.csv").write_text(table(f"{GOOD},1,2,1", header=f"{HEADER},can_recommend,gpus,workers"))
    done = shell(f"$A {command}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


def test_standard_streams_that_are_not_needed_may_be_closed(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(table(*[f"{GOOD},a note on stderr"] * (CHUNK + 1), header=f"{HEADER},note"))
    assert shell("$A recommend --csv jobs.csv -o answers.csv <&- >&- 2>&-", tmp_path).returncode == 0
    assert len(rows((tmp_path / "answers.csv").read_text())) == CHUNK + 1


@pytest.mark.parametrize("command", ["recommend --csv jobs.csv", "recommend --csv jobs.csv --json"])
def test_a_file_that_does_not_fit_on_the_disk_is_named_and_leaves_nothing(tmp_path: Path, command: str) -> None:
    jobs = table(*[f"{GOOD},{'x' * 10_000}"] * 2000, header=f"{HEADER},note")  # 20 MB; the predictor needs less
    (tmp_path / "jobs.csv").write_text(jobs)
    (tmp_path / "answers.csv").write_text("of yesterday")
    done = shell(f"ulimit -f 10000; $A {command} -o answers.csv 2>&1 | cat", tmp_path)
    assert done.stdout.splitlines()[1:] == ["answers.csv: writing failed: File too large"]
    assert (tmp_path / "answers.csv").read_text() == "of yesterday"
    assert sorted(os.listdir(tmp_path)) == ["answers.csv", "jobs.csv"]


def test_a_pipe_may_be_named(tmp_path: Path) -> None:
    done = shell(f"$A recommend {' '.join(ONE_JOB)} -o /dev/stdout | cat", tmp_path)
    assert (done.returncode, done.stderr, rows(done.stdout)[0]["gpus"]) == (0, "", "2")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_help_for_a_full_disk_is_a_broken_environment(tmp_path: Path) -> None:
    done = shell("$A --help > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "ado-autoconf: [Errno 28] No space left on device\n")


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    """They are refused in a name, but a file may have any name."""
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text(table(GOOD))
    done = shell("$A recommend --csv $'\\xff.csv' -o $'\\xfe.csv'", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows((tmp_path / os.fsdecode(b"\xfe.csv")).read_text())[0]["gpus"] == "2"
    done = shell(f"$A recommend {' '.join(ONE_JOB)} --gpu-model $'\\xff'", tmp_path)
    assert (done.returncode, done.stderr) == (2, "gpu_model: must be text in UTF-8, got '\\udcff'\n")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_leaves_no_file(tmp_path: Path, ending: signal.Signals) -> None:
    (tmp_path / "jobs.csv").write_text(table(*[GOOD] * 300_000))
    command = [COMMAND, "recommend", "--csv=jobs.csv", "--output=answers.csv"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(ending, signal.SIG_DFL),  # whatever the tests' own parent ignores
    )
    while not list(tmp_path.glob(".ado-autoconf-*.tmp")):
        assert process.poll() is None
    process.send_signal(ending)
    assert process.communicate() == (None, "")
    assert process.returncode == -ending
    assert os.listdir(tmp_path) == ["jobs.csv"]


def test_a_terminal_gets_one_job_as_a_table(tmp_path: Path) -> None:
    stdout = on_a_terminal("stdout", ["recommend", *ONE_JOB], tmp_path)
    assert "tokens_per_sample" in stdout
    assert "gpus" in stdout
    assert "can_recommend,gpus" not in stdout
    assert (tmp_path / "stderr").read_text() == ""


def test_who_watches_a_long_table_sees_progress(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(table(*[GOOD] * (2 * CHUNK + 1)))
    stderr = on_a_terminal("stderr", ["recommend", "--csv=jobs.csv"], tmp_path)
    assert f"{CHUNK}/{2 * CHUNK + 1}" in stderr
    stdout = (tmp_path / "stdout").read_text()
    assert stdout.count("\n") == 2 * CHUNK + 2
    assert "\x1b" not in stdout
