"""Judge throughput whose settings are chosen without the rows that judge it.

``make evaluate-throughput`` runs ``python -m autoconf.pipeline.throughput.nested`` after the evaluation. The released
version has settings that were chosen by the same held-out rows that judge it. Here they are chosen inside each training
fold, by rows held out there in the same way, and only then judged on the rows outside.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from autoconf.memory.units import Floats
from autoconf.pipeline.report import markdown, write_section
from autoconf.pipeline.throughput.evaluate import (
    COMMAND,
    PAGE,
    WAYS,
    HeldOut,
    Rows,
    figures_of,
    gpu_waits,
    groups,
    rows,
)
from autoconf.pipeline.throughput.learn import learn, predicted
from autoconf.pipeline.throughput.physics import rates
from autoconf.speed.counts import CLOSED_FORM

_FOLDS = 5  # inside a training fold


class Choice(NamedTuple):
    """Settings to choose from: the work, counted or in closed form, and the trees; ``None`` for no correction."""

    counted: bool
    trees: tuple[int, int] | None  # leaves and rounds

    def __str__(self) -> str:
        trees = "no correction" if self.trees is None else f"{self.trees[1]} trees of {self.trees[0]} leaves"
        return f"{'counted work' if self.counted else 'closed form'}, {trees}"


CHOICES = [Choice(counted, trees) for counted in (True, False) for trees in ((15, 300), (7, 150), None)]


def predict(choice: Choice, known: Rows, judged: Rows) -> Floats:
    """Predict rows with everything learned from other rows, shape (judged,)."""
    learned = learn(known.runs, known.table["model"], known.rates)
    if choice.trees is None:
        return rates(judged.runs, learned.constants)
    leaves, rounds = choice.trees
    return predicted(learned, judged.runs, num_leaves=leaves, num_boost_round=rounds)


def chosen(variants: dict[bool, Rows], of_row: Any) -> Choice:
    """The choice with the least error on rows that are held out by their groups."""
    names = pd.Series(of_row).rank(method="dense").to_numpy(int)
    folds = names % _FOLDS
    errors = {
        choice: np.mean(
            [
                abs(np.log(predict(choice, some.only(folds != fold), some.only(folds == fold)) / out.rates)).mean()
                for fold in np.unique(folds)
                for some in [variants[choice.counted]]
                for out in [some.only(folds == fold)]
            ]
        )
        for choice in CHOICES
    }
    return min(CHOICES, key=lambda choice: errors[choice])


def held_out(variants: dict[bool, Rows], of_row: Any) -> tuple[HeldOut, Counter[Choice]]:
    """Predict each group of rows with everything learned and chosen from the other groups; count the choices."""
    count = len(of_row)
    full, waits, choices = np.zeros(count), np.zeros(count, bool), Counter[Choice]()
    for group in pd.unique(of_row):
        out = of_row == group
        known = {counted: some.only(~out) for counted, some in variants.items()}
        choice = chosen(known, of_row[~out])
        choices[choice] += 1
        some = variants[choice.counted]
        full[out] = predict(choice, known[choice.counted], some.only(out))
        constants = learn(known[True].runs, known[True].table["model"], known[True].rates).constants
        waits[out] = gpu_waits(variants[True].only(out).runs, constants)
    return HeldOut(of_row, full, full, full, waits), choices


def main() -> None:
    """Judge throughput with settings chosen inside each training fold, and write the table into its page."""
    variants = {True: rows(), False: rows(CLOSED_FORM)}
    table, count = [], variants[True].rates
    for way, of_row in groups(variants[True]).items():
        found, choices = held_out(variants, of_row)
        row = figures_of(found, found.full, count, way, "settings chosen inside each fold", WAYS[way])
        often = ", ".join(f"{number} times {choice}" for choice, number in choices.most_common())
        table.append({**row, "chosen": often})
    print(markdown(table))
    write_section(PAGE, "throughput with nested choices", COMMAND, markdown(table))


if __name__ == "__main__":
    typer.run(main)
