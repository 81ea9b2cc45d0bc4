"""Write the report from the measurements of pytest-benchmark: `report.py MEASURED.json BENCHMARKS.md`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

LIBRARIES = ["autoconf-gpus", "ado-core", "ray", "autogluon.tabular", "lightgbm", "numpy", "pandas", "scipy"]
HEADER = ["Figure", "Measured", "Baseline", "Ratio", "Required", "Target", "Met?"]
NONE = "–"  # noqa: RUF001 - an empty cell


def main(measured: str, report: str) -> None:
    data = json.loads(Path(measured).read_text(encoding="utf-8"))
    how: dict[str, str] = {}
    ours: dict[tuple[str, str], dict[str, Any]] = {}
    baselines: dict[tuple[str, str], dict[str, Any]] = {}
    for benchmark in data["benchmarks"]:
        test, info = benchmark["name"].partition("[")[0].removeprefix("test_"), benchmark["extra_info"]
        how[test] = info["how"]
        for facts in [timed(benchmark), *info.get("also", [])]:
            (baselines if "baseline" in facts else ours)[test, facts["figure"]] = facts | {"quick": info["quick"]}
    rows = [row(facts, baselines.get(key)) for key, facts in ours.items()]
    lines = [
        "# Benchmarks\n",
        "Written by `make benchmark`. Baselines come from the same run; ratio is measured / baseline.\n",
        *(f"- {line}" for line in machine(data)),
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)),
        "\n## How each is measured\n",
        "Times are medians.\n",
        *(f"- `{name}`: {text}" for name, text in how.items()),
    ]
    Path(report).write_text("\n".join(lines) + "\n", encoding="utf-8")


def timed(benchmark: dict[str, Any]) -> dict[str, Any]:
    """The facts of a time measurement."""
    facts = {"figure": benchmark["group"], "unit": "s", **benchmark["extra_info"]}
    scale = facts.get("scale", 1) * (1000 if facts["unit"] == "ms" else 1)
    values = [value * scale for value in benchmark["stats"]["data"]]
    if len(values) >= 100:
        facts["spread"] = f"95 % within {number(statistics.quantiles(values, n=20)[-1])}"
    elif len(values) > 1:
        facts["spread"] = f"{number(min(values))} to {number(max(values))}"
    return facts | {"measured": statistics.median(values)}


def row(facts: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    """A line of the table.

    Facts are ``figure``, ``measured``, ``unit`` and, where there are, ``spread``, ``target`` and ``required`` (in the
    unit) or ``required_ratio`` (of measured to baseline); ``at_least`` makes them lower bounds. A baseline's facts
    say what it is as ``baseline``.
    """
    unit, measured = facts["unit"], facts["measured"]
    ratio = measured / baseline["measured"] if baseline and baseline["measured"] else None
    sign, met = ("≥", measured.__ge__) if facts.get("at_least") else ("≤", measured.__le__)
    required = facts.get("required")
    bound = f"{sign} {quantity(required, unit)}" if required is not None else NONE
    if baseline and "required_ratio" in facts:
        required = facts["required_ratio"] * baseline["measured"]
        bound = f"{sign} {facts['required_ratio']:g} x baseline"
    target = facts.get("target")
    verdict = NONE if required is None else "yes" if met(required) else "**no**"
    if verdict == "yes" and target is not None:
        verdict += ", and the target" if met(target) else ", but not the target"
    return [
        facts["figure"],
        shown(facts),
        f"{shown(baseline)}: {baseline['baseline']}" if baseline else NONE,
        NONE if ratio is None else number(ratio),
        bound,
        NONE if target is None else f"{sign} {quantity(target, unit)}",
        "small sizes" if facts["quick"] else verdict,
    ]


def shown(facts: dict[str, Any]) -> str:
    spread = f" ({facts['spread']})" if "spread" in facts else ""
    return quantity(facts["measured"], facts["unit"]) + spread


def quantity(value: float, unit: str) -> str:
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    """Three significant digits, or a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(data: dict[str, Any]) -> list[str]:
    """The environment in which the figures were measured."""
    info = data["machine_info"]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"Date: {data['datetime'][:16].replace('T', ' ')} UTC",
        f"CPU: {info['cpu'].get('brand_raw', info['machine'])}, {os.cpu_count()} cores; load average at the end {load}",
        f"Python {info['python_version']} on {info['system']} {info['release']}",
        f"Libraries: {', '.join(f'{library} {importlib.metadata.version(library)}' for library in LIBRARIES)}",
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
