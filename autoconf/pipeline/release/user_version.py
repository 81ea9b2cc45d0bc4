"""Make a user version: a released version with more models and with a safety margin learned from a cluster's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.errors import BadInput
from autoconf.files import called
from autoconf.jobs.names import Names
from autoconf.jobs.tables import read_table
from autoconf.memory.store import ModelsTable, read_models, write_models
from autoconf.pipeline.calibration.cluster import Cluster, learn_cluster
from autoconf.pipeline.calibration.cluster_speed import LearnedSpeed, learn_speed
from autoconf.pipeline.calibration.user_runs import measures_memory, measures_speed
from autoconf.pipeline.catalog import architectures
from autoconf.pipeline.release.evaluation import measured
from autoconf.pipeline.release.version_folder import complete, new_version
from autoconf.pipeline.tracing.trace_file import Trace, read_trace
from autoconf.predictor import rebuild, registry, user_versions
from autoconf.predictor.cards import Card, Model, digest
from autoconf.predictor.predictor import Predictor, memory_of

EVALUATION_JOBS = 2_000
# The tables of a card's evaluation that are printed, in order.
SHOWN = ("learned", "runs", "measured", "learned of throughput", "throughput", "measured throughput", "figures")


@dataclass(frozen=True)
class OwnVersion:
    """A new user version: its folder, its card, and the margin learned from runs."""

    folder: Path
    sha256: str  # of the card
    card: Card
    cluster: Cluster | None
    speed: LearnedSpeed | None

    @property
    def notes(self) -> list[str]:
        """Notes about the table of runs."""
        ignored = self.cluster.ignored if self.cluster else []
        return [f"columns that are ignored: {', '.join(ignored)}"] if ignored else []

    def summary(self) -> dict[str, Any]:
        """A summary of the version and its evaluation."""
        evaluation = self.card.evaluation
        return {
            "version": self.card.version,
            "folder": str(self.folder),
            "sha256": self.sha256,
            "models": len(self.card.domain.models),
            **{name: evaluation[name] for name in SHOWN if name in evaluation},
        }


def train_own(base: str, version: str, output: Path, traces: Sequence[str] = (), runs: str | None = None) -> OwnVersion:
    """Make a user version, and trust it on this machine.

    Args:
        base: the version to start from: 2.0.0, a later one, or a user version.
        version: name of the new version: the number of the base, a + and a name.
        output: folder of versions, created if needed.
        traces: files of ``ado-autoconf trace``.
        runs: a table of measured runs for ``learn_cluster``.

    Raises:
        BadInput: there is nothing to add, a name is taken or invalid, or a file is invalid.
        AutoConfError: the base is broken, AutoGluon does not train, or the version would break an ordering.
    """
    folder = _new_folder(base, version, output, bool(traces or runs))
    start = _base(base)
    found = [read_trace(path) for path in traces]
    table = None if runs is None else read_table(runs)
    domain = start.domain.model_copy(update={"models": {**start.domain.models, **_more_models(start, found, traces)}})
    card = start.card.model_copy(
        update={
            "version": version,
            "created": "",
            "domain": domain,
            "base": {},  # a user version has all of its moments
            "made_from": _made_from(base, traces, runs, table),
        }
    )
    with new_version(folder) as scratch:
        place = registry.place(base).folder
        write_models([*read_models(place), *(trace.figures for trace in found)], scratch)
        teaches, cluster = pd.read_parquet(place / rebuild.TRAINING_TABLE), None
        speed = None
        if table is not None:
            memory = memory_of(start.card, ModelsTable.read(scratch))
            asked = start.about(domain.models, memory)
            if measures_memory(table) or not measures_speed(table):
                cluster = learn_cluster(asked, table, called(str(runs)))
                card = card.model_copy(update={"reserve": cluster.reserve})
                teaches = teaches if cluster.training_table is None else cluster.training_table
            if measures_speed(table):
                speed = learn_speed(asked, table, called(str(runs)))
                card = card.model_copy(update={"cluster_speed": speed.speed})
        sha256 = complete(scratch, card, teaches, lambda predictor: _evaluation(predictor, found, cluster, speed))
    user_versions.pin(folder, sha256)
    # Its files are read and checked now, so that the first job does not wait for it.
    return OwnVersion(folder, sha256, registry.load(version, output).card, cluster, speed)


def _new_folder(base: str, version: str, output: Path, adds: bool) -> Path:
    number = base.partition("+")[0]
    if not user_versions.NAME.fullmatch(version) or version.partition("+")[0] != number:
        raise BadInput(
            f"--version: must be {number}+ and a name of letters, digits and . _ - between them, as {number}+mine; got "
            f"{version!r}"
        )
    if not adds:
        raise BadInput(f"nothing to add to version {base}: give --traces, --measured or both")
    if (output / version).exists():
        raise BadInput(f"{output / version}: exists already; choose another --version, or remove it")
    return output / version


def _base(version: str) -> Predictor:
    try:
        predictor = registry.load(version)
    except ValueError as error:
        raise BadInput(f"--from: {error}") from None
    if predictor.card.reserve is None:
        raise BadInput(f"--from: version {version} supports one stack only; use 2.0.0 or a later one")
    return predictor


def _more_models(base: Predictor, found: Sequence[Trace], paths: Sequence[str]) -> dict[str, Model]:
    """The models of traces, as entries of a domain; no model may have a name of another model."""
    models = dict(base.domain.models)
    for trace, path in zip(found, paths, strict=True):
        known = Names({name: model.aliases for name, model in models.items()})
        model = trace.architecture.in_domain()
        for name in (trace.architecture.name, *model.aliases):
            if other := known.find(name):
                raise BadInput(f"{path}: its model has the name {name!r}, as does {other}; trace it under another name")
        models[trace.architecture.name] = model.model_copy(update={"config": trace.architecture.config})
    return {name: model for name, model in models.items() if name not in base.domain.models}


def _made_from(base: str, traces: Sequence[str], runs: str | None, table: pd.DataFrame | None) -> dict[str, str]:
    made_from = {base: registry.place(base).sha256}
    made_from |= {Path(trace).name: digest(Path(trace).read_bytes()) for trace in traces}
    if table is not None:
        made_from[Path(called(str(runs))).name] = digest(table.to_csv().encode())
    return made_from


def _evaluation(
    predictor: Predictor, found: Sequence[Trace], cluster: Cluster | None, speed: LearnedSpeed | None
) -> dict[str, Any]:
    """The evaluation of a released version with fewer jobs, and the scores on held-out runs."""
    known = {**architectures(), **{trace.architecture.name: trace.architecture for trace in found}}
    families = {name: known[name].family if name in known else "own" for name in predictor.domain.models}
    _, figures = measured(predictor, families, EVALUATION_JOBS)
    evaluation: dict[str, Any] = {}
    if cluster is not None:
        learned = {"what was learned": cluster.sentence, **cluster.learned}
        evaluation |= {"measured": cluster.evaluation, "learned": learned, "runs": cluster.report}
    if speed is not None:
        evaluation |= {
            "learned of throughput": {"what was learned": speed.sentence, **speed.learned},
            "throughput": speed.report,
            "measured throughput": speed.evaluation,
        }
    return {**evaluation, **figures}
