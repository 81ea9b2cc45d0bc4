"""Make a version of the throughput predictor: ``python -m autoconf.pipeline.throughput.release``."""

from __future__ import annotations

from datetime import date

import typer

from autoconf.pipeline.release.version_folder import forget_place_and_time, new_version
from autoconf.pipeline.throughput.evaluate import WAYS, HeldOut, Rows, evaluated, learned_bounds, rows, verdicts
from autoconf.pipeline.throughput.learn import learn
from autoconf.pipeline.throughput.rows import as_method
from autoconf.predictor import autogluon, cards
from autoconf.predictor.cluster_speed import Measured, settings_of
from autoconf.speed.features import MONOTONE
from autoconf.speed.version import CARD, DEFAULT, FOLDER, LABEL, PREDICTOR, TABLE, WEIGHT, SpeedCard


def measured_of(known: Rows) -> Measured:
    """What the rows have."""
    table, stacks = known.table, [run.stack for run in known.runs]
    settings = settings_of(stacks)
    settings["quantizations"] = sorted({*settings["quantizations"], "gptq"})  # read as nf4, as learned
    return Measured(
        models=sorted(set(table["model"])),
        gpus=sorted(set(table["gpu_model"])),
        methods=sorted({as_method(method) for method in table["method"]}),
        optimizers=sorted(
            {stack.optim for stack, method in zip(stacks, table["method"], strict=True) if method == "full"}
        ),
        most_gpus=int(table.loc[table["nodes"] == 1, "number_gpus"].max()),
        most_tokens_per_sample=int(table["tokens_per_sample"].max()),
        **settings,
    )


def make(version: str, known: Rows, results: dict[str, HeldOut]) -> str:
    """Make a version from all rows; return the digest of its card.

    Args:
        version: the version, whose folder is replaced.
        known: the measured rows.
        results: predictions of held-out rows, from which the bounds are learned.
    """
    folder = FOLDER / version
    folder.parent.mkdir(exist_ok=True)
    learned = learn(known.runs, known.table["model"], known.rates)
    bounds = {
        key: one for way, near in WAYS.items() for key, one in learned_bounds(results[way], known.rates, near).items()
    }
    with new_version(folder) as scratch:
        learned.table.to_parquet(scratch / TABLE, compression="zstd", index=False)
        autogluon.fit_regression(learned.table, LABEL, WEIGHT, scratch / PREDICTOR, MONOTONE)
        forget_place_and_time(scratch / PREDICTOR)
        card = SpeedCard(
            version=version,
            created=date.today().isoformat(),
            constants=learned.constants,
            bounds=bounds,
            measured=measured_of(known),
            libraries=autogluon.installed_libraries(),
            files=cards.digests(scratch),
            evaluation={"rows": len(known.rates), "targets": verdicts(results, known.rates)},
        )
        content = (card.model_dump_json(indent=2) + "\n").encode()
        (scratch / CARD).write_bytes(content)
    return cards.digest(content)


def main(version: str = DEFAULT) -> None:
    """Make a version in the package's own folder."""
    known = rows()
    digest = make(version, known, evaluated(known))
    print(f'RELEASED in autoconf/speed/version.py must have this digest of the card:\n"{version}": "{digest}"')


if __name__ == "__main__":
    typer.run(main)
