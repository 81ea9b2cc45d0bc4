"""Make a predictor version: traced figures and real runs -> AutoGluon predictor -> a folder with its card."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from autoconf import cards, tabular, versions
from autoconf.any_stack import StackMemory
from autoconf.build import orderings, reserve
from autoconf.build.architectures import architectures, gpus, models
from autoconf.build.jobs import random_jobs
from autoconf.build.real_rows import read_rows
from autoconf.build.traces import traces
from autoconf.cards import Card, Domain
from autoconf.figures import ModelsTable, write_models
from autoconf.predictors import MONOTONE, Predictor
from autoconf.tabular import LABEL
from autoconf.versions import CHECK_JOBS, PREDICTOR, TRAINING_TABLE

NEWEST = "2.0.0"
# Architectures that are in the table, and that the version does not answer for.
_LATER = "older or less asked for; nothing but its traces, of a minute, is missing"
LEFT_OUT = {
    "granite-8b-japanese": "its shapes are an assumption, which a real run contradicts",
    **dict.fromkeys(
        [
            "llama-30b", "llama-65b", "tinyllama-1.1b", "codellama-7b", "codellama-13b", "codellama-34b",
            "codellama-70b",
            "phi-1.5", "phi-2", "deepseek-coder-1.3b", "deepseek-coder-6.7b", "deepseek-coder-33b", "olmoe-1b-7b",
            "yi-9b", "starcoder-15b", "pythia-160m", "pythia-410m", "pythia-1b", "pythia-1.4b", "pythia-2.8b",
            "pythia-6.9b", "pythia-12b", "gpt-neox-20b", "opt-125m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b",
            "opt-30b", "opt-66b",
        ],
        _LATER,
    ),
}  # fmt: skip
_CHECKS = 800  # drawn; about half of them can be spread over workers
_SEED = 20261125


def domain(names: list[str]) -> Domain:
    """The jobs that a version answers: every GPU type that is known, and some models."""
    return Domain(
        models=models(names, later_aliases=True),
        methods=["full", "lora", "qlora"],
        gpus=gpus(later_aliases=True),
        max_tokens_per_sample=131_072,
        max_batch_size=4_096,
        max_gpus=512,
    )


def train(version: str, folder: Path) -> str:
    """Make a version in ``folder``, which it replaces.

    Returns:
        The digest of its card.

    Raises:
        AutoConfError: AutoGluon does not import, or the trained predictor breaks an ordering that versions promise.
    """
    names = [name for name in architectures() if name not in LEFT_OUT]
    learnt = reserve.learn(read_rows())
    table = reserve.training_rows(np.random.default_rng(_SEED))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name) / folder.name
        scratch.mkdir()
        write_models(traces(names, folder), scratch)
        table.to_parquet(scratch / TRAINING_TABLE, compression="zstd", index=False)
        tabular.fit(table, scratch / PREDICTOR, MONOTONE)
        _forget_paths(scratch / PREDICTOR)
        card = Card(
            version=version,
            created=date.today().isoformat(),
            domain=domain(names),
            threshold=reserve.THRESHOLD,
            reserve=learnt.reserve(),
            libraries=tabular.installed_libraries(),
            files={},
        )
        memory = StackMemory(ModelsTable(scratch))
        predictor = Predictor(card, memory, tabular.load_tabular(scratch / PREDICTOR, version))
        promises = orderings.check(predictor)
        checks = random_jobs(predictor, np.random.default_rng(_SEED), _CHECKS)
        fits = predictor.fits(predictor.candidates(checks))
        checks.assign(**{LABEL: fits.astype(int)}).to_csv(scratch / CHECK_JOBS, index=False, lineterminator="\n")
        evaluation = {"orderings": promises}
        files = cards.digests(scratch)
        digest = write_card(scratch, card.model_copy(update={"files": files, "evaluation": evaluation}))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return digest


def _forget_paths(predictor: Path) -> None:
    """Take this machine's paths out of the pickles: AutoGluon notes where it trained, and sets them anew on loading."""
    for file in predictor.rglob("*.pkl"):
        pickled = pickle.loads(file.read_bytes())
        for attribute, value in vars(pickled).items():
            if isinstance(value, str) and Path(value).is_absolute():
                setattr(pickled, attribute, Path(value).name)
        file.write_bytes(pickle.dumps(pickled, protocol=4))


def write_card(folder: Path, card: Card) -> str:
    """Write a version's card and return its digest."""
    content = (card.model_dump_json(indent=2) + "\n").encode()
    (folder / cards.CARD).write_bytes(content)
    return cards.digest(content)


def release(version: str, digest: str) -> str:
    """What has to be done before a version answers."""
    return f'RELEASED in autoconf/versions.py must have this digest of the card:\n"{version}": "{digest}"'


def main(version: Annotated[str, typer.Argument(help="version to make")] = NEWEST) -> None:
    """Make a predictor version in the package's own folder."""
    folder = versions.MODELS / version
    digest = train(version, folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"made {folder} ({size / 2**20:.1f} MiB)")
    print(release(version, digest))


if __name__ == "__main__":
    typer.run(main)
