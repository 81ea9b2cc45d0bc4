"""The benchmarks, with one figure that takes seconds, and the report of figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("benchmarks") / "measured.json"
    command = ["-m", "pytest", "benchmarks/figures.py", "-k", "test_table", "--quick", f"--benchmark-json={file}"]
    # In a worker of pytest-xdist pytest-benchmark measures nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=True, timeout=600, stdout=subprocess.DEVNULL, env=environment
    )
    return file.read_text()


@pytest.fixture
def measured(measured_text: str) -> dict:
    """The measurements of pytest-benchmark for a table of 3,960 jobs and for its baseline; a test may change them."""
    return json.loads(measured_text)


def line_of(figure: str, measured: dict, folder: Path) -> list[str]:
    """The cells of a figure's line in the report."""
    source, report = folder / "measured.json", folder / "report.md"
    source.write_text(json.dumps(measured))
    subprocess.run([sys.executable, ROOT / "benchmarks" / "report.py", source, report], check=True, timeout=600)
    (line,) = [line for line in report.read_text().splitlines() if line.startswith(f"| {figure} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_figure_is_reported_next_to_its_baseline(measured: dict, tmp_path: Path) -> None:
    line = line_of("recommend(), 3,960 jobs", measured, tmp_path)
    _, ours, baseline, ratio, required, target, met = line
    assert 0 < float(ours.split()[0]) < float(baseline.split()[0])
    assert float(ratio) == pytest.approx(float(ours.split()[0]) / float(baseline.split()[0]), rel=0.02)
    assert (required, target, met) == ("≤ 1 s", "≤ 0.3 s", "small sizes")


@pytest.mark.parametrize(
    ("seconds", "met"), [(0.2, "yes, and the target"), (0.4, "yes, but not the target"), (2.0, "**no**")]
)
def test_a_missed_requirement_says_so(measured: dict, tmp_path: Path, seconds: float, met: str) -> None:
    for benchmark in measured["benchmarks"]:
        benchmark["extra_info"]["quick"] = False
        benchmark["stats"]["data"] = [seconds]
    assert line_of("recommend(), 3,960 jobs", measured, tmp_path)[-1] == met


@pytest.mark.parametrize(("last", "met"), [(70.0, "yes"), (50.0, "**no**")])
def test_a_rate_must_not_fall_below_its_share_of_the_baseline(
    measured: dict, tmp_path: Path, last: float, met: str
) -> None:
    rate = {"figure": "rate", "unit": "points/s", "measured": last, "required_ratio": 0.6, "at_least": True}
    for benchmark in measured["benchmarks"]:
        benchmark["extra_info"]["quick"] = False
    measured["benchmarks"][0]["extra_info"]["also"] = [rate, {**rate, "measured": 100.0, "baseline": "at first"}]
    line = line_of("rate", measured, tmp_path)
    assert (line[2], line[4], line[-1]) == ("100 points/s: at first", "≥ 0.6 x baseline", met)
