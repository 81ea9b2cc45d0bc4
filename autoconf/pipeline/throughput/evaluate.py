"""Judge throughput on rows that were held out, next to the physics alone and to a LightGBM without physics.

``make evaluate-throughput`` runs ``python -m autoconf.pipeline.throughput.evaluate``. It learns with each model, each
GPU type and each tenth of the rows held out, prints the tables, and writes them into ``docs/versions/throughput.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from autoconf.memory.units import Booleans, Floats, Integers
from autoconf.pipeline.report import PAGES, markdown, write_section
from autoconf.pipeline.throughput.learn import feature_table, learn, predicted, weights_of
from autoconf.pipeline.throughput.physics import Measured, measured, rates
from autoconf.pipeline.throughput.rows import RATE, all_rows, read_rows, read_stacks
from autoconf.predictor.cluster_speed import Bounds
from autoconf.speed.bounds import Near, bounds_key, waits
from autoconf.speed.counts import Counts
from autoconf.speed.roofline import Constants, loads, times
from autoconf.speed.version import DEFAULT

PAGE = PAGES / "throughput.md"
COMMAND = "make evaluate-throughput"
SEED, TENTHS = 0, 10
# Ways of holding rows out, each with the key of the bounds that it judges, and what is required.
WAYS: dict[str, Near] = {"at random": "measured", "a whole model": "model", "a whole GPU type": "nothing"}
TARGETS = {"at random": (0.06, 0.25), "a whole model": (0.20, 0.60)}  # median, 90th percentile
COVERAGE = (0.75, 0.90)
# Percentiles of the bounds. Only three GPU types were measured, too few to learn how a fourth one differs: its bounds
# are as far on both sides as those of the type that differed most when it was held out.
_LEVELS = 0.1, 0.9


class Rows(NamedTuple):
    """Measured rows: the table, their work, and tokens per second, shape (rows,)."""

    table: pd.DataFrame
    runs: list[Measured]
    rates: Floats

    def only(self, chosen: Booleans) -> Rows:
        """Some of the rows."""
        return Rows(
            self.table[chosen],
            [run for run, is_one in zip(self.runs, chosen, strict=True) if is_one],
            self.rates[chosen],
        )


class HeldOut(NamedTuple):
    """Predictions of held-out rows, each of shape (rows,), and the group that each row was held out with."""

    groups: Any
    full: Floats
    physics: Floats
    lightgbm: Floats
    waits: Booleans


def rows(counts: Counts | None = None) -> Rows:
    """The measured rows that did not fall out; arguments as in ``work_of``."""
    table = read_rows()
    return Rows(table, measured(table, read_stacks(), counts), table[RATE].to_numpy(float))


def groups(all_of: Rows) -> dict[str, Any]:
    """For each way of holding rows out, the group of each row."""
    tenths = np.random.default_rng(SEED).permutation(len(all_of.rates)) % TENTHS
    of_each = tenths, all_of.table["model"].to_numpy(), all_of.table["gpu_model"].to_numpy()
    return dict(zip(WAYS, of_each, strict=True))


def held_out(all_of: Rows, of_row: Any) -> HeldOut:
    """Predict each group of rows with everything learned from the other groups."""
    count = len(all_of.rates)
    full, physics, plain, waiting = np.zeros(count), np.zeros(count), np.zeros(count), np.zeros(count, bool)
    for group in pd.unique(of_row):
        out = of_row == group
        known, judged = all_of.only(~out), all_of.only(out)
        learned = learn(known.runs, known.table["model"], known.rates)
        full[out] = predicted(learned, judged.runs)
        physics[out] = rates(judged.runs, learned.constants)
        plain[out] = without_physics(known, judged.runs)
        waiting[out] = gpu_waits(judged.runs, learned.constants)
    return HeldOut(of_row, full, physics, plain, waiting)


def gpu_waits(runs: list[Measured], constants: Constants) -> Booleans:
    return np.array([waits(times(loads(run.work, run.gpu, run.layout), constants)) for run in runs], bool)


def without_physics(known: Rows, judged: list[Measured]) -> Floats:
    """Tokens per second by a LightGBM that has the same features and the sizes of model and batch, but no physics."""
    import lightgbm

    parameters = {"objective": "l2", "num_leaves": 15, "min_data_in_leaf": 5, "learning_rate": 0.05, "verbosity": -1,
                  "num_threads": 1, "seed": 0, "deterministic": True, "lambda_l2": 5.0}  # fmt: skip
    data = lightgbm.Dataset(_plain_table(known.runs), np.log(known.rates), weight=weights_of(known.table["model"]))
    found: Floats = np.exp(lightgbm.train(parameters, data, 300).predict(_plain_table(judged)))
    return found


def _plain_table(runs: list[Measured]) -> pd.DataFrame:
    sizes = [
        {
            "parameters": np.log(run.shapes.layers * run.shapes.layer_stored + run.shapes.head),
            "active": np.log(run.shapes.layers * run.shapes.layer_active + run.shapes.head),
            "layers": run.shapes.layers,
            "samples": run.layout.samples,
        }
        for run in runs
    ]
    return pd.concat([feature_table(runs), pd.DataFrame(sizes)], axis=1)


def learned_bounds(found: HeldOut, measured_rates: Floats, key: Near) -> dict[str, Bounds]:
    """The bounds of a way of holding out, separately for jobs in which the GPU waits."""
    learn_one = _worst_group if key == "nothing" else _conformal
    return {
        bounds_key(key, waiting): learn_one(found, measured_rates / found.full, found.waits == waiting)
        for waiting in (False, True)
    }


def _conformal(found: HeldOut, ratios: Floats, chosen: Booleans) -> Bounds:
    """Percentiles over all rows; groups count by the square root of their rows."""
    weights = weights_of(pd.Series(found.groups[chosen]))
    low, high = _percentiles(ratios[chosen], weights, _LEVELS)
    return Bounds(low=round(min(low, 1.0), 4), high=round(max(high, 1.0), 4))


def _worst_group(found: HeldOut, ratios: Floats, chosen: Booleans) -> Bounds:
    """The largest percentile that a group has, as a factor in both directions."""
    factors = pd.Series(np.exp(np.abs(np.log(ratios[chosen])))).groupby(found.groups[chosen])
    largest = float(factors.quantile(_LEVELS[1]).max())
    return Bounds(low=round(1 / largest, 4), high=round(largest, 4))


def _percentiles(values: Floats, weights: Floats, levels: tuple[float, float]) -> list[float]:
    """Percentiles of weighted values, moved outward by one value's share, as conformal prediction has them."""
    order = np.argsort(values)
    shares = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    outward = 1 / (len(values) + 1)
    return [float(np.interp(level, shares, values[order])) for level in (levels[0] - outward, levels[1] + outward)]


def coverage(found: HeldOut, measured_rates: Floats, key: Near) -> float:
    """The share of rows within their bounds, which are learned from the rows of the other groups."""
    inside: Integers = np.zeros(len(measured_rates), np.int64)
    for group in pd.unique(found.groups):
        out = found.groups == group
        others = HeldOut(*(part[~out] for part in found))
        bounds = learned_bounds(others, measured_rates[~out], key)
        for index in np.flatnonzero(out):
            one = bounds[bounds_key(key, bool(found.waits[index]))]
            inside[index] = one.low <= measured_rates[index] / found.full[index] <= one.high
    return float(inside.mean())


def figures(found: HeldOut, measured_rates: Floats, way: str) -> list[dict[str, Any]]:
    """The rows of the table for one way of holding out."""
    return [
        figures_of(found, found.full, measured_rates, way, f"throughput {DEFAULT}", WAYS[way]),
        figures_of(found, found.physics, measured_rates, way, "physics alone"),
        figures_of(found, found.lightgbm, measured_rates, way, "LightGBM without physics"),
    ]


def figures_of(
    found: HeldOut, predictions: Floats, measured_rates: Floats, way: str, name: str, bounds: Near | None = None
) -> dict[str, Any]:
    """The errors of one predictor, and how many of ``found.full`` are within their ``bounds``."""
    errors = np.abs(predictions / measured_rates - 1)
    return {
        "held out": way,
        "predictor": name,
        "median %": f"{100 * np.median(errors):.1f}",
        "mean %": f"{100 * errors.mean():.1f}",
        "p90 %": f"{100 * np.quantile(errors, 0.9):.1f}",
        "within bounds %": "" if bounds is None else f"{100 * coverage(found, measured_rates, bounds):.0f}",
    }


def by_group(found: HeldOut, measured_rates: Floats, what: str) -> list[dict[str, Any]]:
    """Errors for each group that was held out as a whole."""
    errors = pd.Series(100 * np.abs(found.full / measured_rates - 1)).groupby(found.groups)
    return [
        {what: name, "rows": len(group), "median %": f"{group.median():.1f}", "worst %": f"{group.max():.0f}"}
        for name, group in errors
    ]


def verdicts(results: dict[str, HeldOut], measured_rates: Floats) -> list[dict[str, Any]]:
    """Whether each target is met."""
    table = []
    for way, (median, p90) in TARGETS.items():
        errors = np.abs(results[way].full / measured_rates - 1)
        for what, value, most in (("median", np.median(errors), median), ("p90", np.quantile(errors, 0.9), p90)):
            met = "met" if value <= most else "missed"
            table.append({"target": f"{way}: {what} <= {most:.0%}", "is": f"{value:.1%}", "": met})
    for way, key in WAYS.items():
        share = coverage(results[way], measured_rates, key)
        met = "met" if COVERAGE[0] <= share <= COVERAGE[1] else "missed"
        table.append(
            {"target": f"{way}: {COVERAGE[0]:.0%} to {COVERAGE[1]:.0%} within bounds", "is": f"{share:.0%}", "": met}
        )
    return table


def left_out() -> list[dict[str, Any]]:
    """How many rows fell out, by reason."""
    reasons = all_rows()["left_out"].replace({"": "kept"})
    return [{"rows": count, "": reason} for reason, count in reasons.value_counts().items()]


def evaluated(known: Rows) -> dict[str, HeldOut]:
    """Predict the rows in each way of holding them out."""
    return {way: held_out(known, of_row) for way, of_row in groups(known).items()}


def main() -> None:
    """Evaluate throughput, and write the tables into its page."""
    known = rows()
    results = evaluated(known)
    table = [row for way, found in results.items() for row in figures(found, known.rates, way)]
    sections = {
        "throughput on held-out rows": table,
        "targets": verdicts(results, known.rates),
        "models": by_group(results["a whole model"], known.rates, "model held out"),
        "GPU types": by_group(results["a whole GPU type"], known.rates, "GPU type held out"),
        "rows": left_out(),
    }
    for what, section in sections.items():
        print(f"\n{markdown(section)}")
        write_section(PAGE, what, COMMAND, markdown(section))


if __name__ == "__main__":
    typer.run(main)
