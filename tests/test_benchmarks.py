"""The benchmark script, on one figure that it measures in seconds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_figure_is_reported_next_to_its_baseline_in_the_file_asked_for_only(tmp_path: Path) -> None:
    report = ROOT / "BENCHMARKS.md"
    before = report.read_bytes() if report.exists() else None
    output = tmp_path / "report.md"
    command = [sys.executable, "benchmarks/run.py", "--only", "recommend-table", "--quick", "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    (line,) = [line for line in output.read_text().splitlines() if line.startswith("| recommend(), 3,960 jobs |")]
    _, measured, baseline, ratio, required, aim, _ = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(measured.split()[0]) < float(baseline.split()[0])
    assert float(ratio) < 1
    assert (required, aim) == ("≤ 1 s", "≤ 0.3 s")
    assert (report.read_bytes() if report.exists() else None) == before
