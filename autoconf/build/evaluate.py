"""How good a version is: the predictor against the truth of the traces, on jobs that training never saw.

Writes the figures into the version's card, its section of ``AutoGluonModels/README.md`` and one picture.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from scipy.optimize import nnls

from autoconf import predictors
from autoconf.build.architectures import architectures
from autoconf.build.readme import markdown, write_section
from autoconf.build.train import release, write_card
from autoconf.build.virtual_runs import TOKEN_STEP, headroom_gib
from autoconf.figures import MemoryFigures, Moment, read_figures
from autoconf.memory import MemoryTable
from autoconf.predictors import (
    CARD,
    DEFAULT,
    FIGURES,
    MODELS,
    RELEASED,
    TRAINING_TABLE,
    Card,
    Predictor,
    candidates_of,
)
from autoconf.recommender import recommend
from autoconf.rules import Booleans, Candidates, resident_state_fits
from autoconf.search import Jobs, decide, smallest

JOBS = 20_000
NEAR = 0.10  # of a GPU's usable memory: half of the jobs lie this close to the edge
HARMFUL = 0.02  # a wrong "fits" this far beyond the edge is not excused by rounding
GPUS_PER_WORKER = 8
_SEED = 7
_POOL = 1_500_000  # jobs drawn to choose from
_SLICES = 100  # on each side of the edge
_JOB = ["model_name", "method", "gpu_model", "tokens_per_sample", "batch_size", "gradient_accumulation_steps"]

# Required of a version, and aimed at; a figure is a percentage of the jobs or pairs it is measured on.
TARGETS: dict[str, tuple[str, float, float]] = {
    "same decision (fits on n GPUs or not)": (">=", 99.5, 99.9),
    "same minimum number of GPUs": (">=", 99.0, 99.8),
    "wrong 'fits' by more than 2 % of memory": ("<=", 0.1, 0.0),
    "same minimum on the 3,960-point sweep": (">=", 99.5, 100.0),
    "physically impossible answers": ("<=", 0.0, 0.0),
    "pairs where more tokens turn no into yes": ("<=", 0.0, 0.0),
    "pairs where more batch turns no into yes": ("<=", 0.0, 0.0),
    "pairs where fewer GPUs turn no into yes": ("<=", 0.0, 0.0),
    "pairs where LoRA needs more GPUs than full": ("<=", 0.0, 0.0),
}


class Truth(Predictor):
    """Answers as the traces do."""

    def fits(self, candidates: Candidates) -> Booleans:
        return headroom_gib(candidates) >= 0


@dataclass(frozen=True)
class Judged:
    """Jobs on numbers of GPUs with what is true of them and what was said; all arrays have shape (jobs,)."""

    jobs: pd.DataFrame
    candidates: Candidates
    headroom_gib: np.ndarray
    probability: np.ndarray
    said: Booleans

    @property
    def true(self) -> Booleans:
        return self.headroom_gib >= 0

    @property
    def distance(self) -> np.ndarray:
        """Distance from the edge as a share of usable memory."""
        return np.abs(self.headroom_gib) / self.candidates.usable_gib


def draw(generator: np.random.Generator, card: Card, count: int) -> pd.DataFrame:
    """Random jobs off the training grid, each with a number of GPUs that it may run on."""
    domain = card.domain

    def orders(low: int, high: np.ndarray | int) -> np.ndarray:
        return np.exp(generator.uniform(np.log(low), np.log(np.asarray(high) + 1.0), count)).astype(int)

    gpus = np.where(generator.random(count) < 0.15, 1, generator.integers(1, domain.max_gpus + 1, count))
    jobs = pd.DataFrame(
        {
            "model_name": generator.choice(list(domain.models), count),
            "method": generator.choice(domain.methods, count),
            "gpu_model": generator.choice(list(domain.gpus), count),
            "tokens_per_sample": orders(1, domain.max_tokens_per_sample),
            "batch_size": gpus * orders(1, domain.max_batch_size // gpus),
            "gradient_accumulation_steps": generator.choice([1, 4], count),
            "number_gpus": gpus,
        }
    )
    longest = jobs["model_name"].map({name: m.max_tokens_per_sample for name, m in domain.models.items()})
    splits = gpus % -(-gpus // GPUS_PER_WORKER) == 0
    inside = splits & ~(jobs["tokens_per_sample"] > longest) & (jobs["tokens_per_sample"] % TOKEN_STEP != 0)
    return jobs[inside].drop_duplicates(ignore_index=True)


def judge(predictor: Predictor, jobs: pd.DataFrame) -> Judged:
    """What a predictor says of jobs, beside what the traces say."""
    candidates = candidates_of(jobs, predictor.memory, predictor.rows, predictor.domain)
    return Judged(
        jobs,
        candidates,
        headroom_gib(candidates),
        predictor.probabilities(predictors.features(candidates)),
        decide(predictor, candidates),
    )


def evaluation_jobs(predictor: Predictor, count: int) -> pd.DataFrame:
    """Unseen jobs, half of them within 10 % of usable memory from the edge."""
    pool = draw(np.random.default_rng(_SEED), predictor.card, _POOL)
    candidates = candidates_of(pool, predictor.memory, predictor.rows, predictor.domain)
    relative = pd.Series(headroom_gib(candidates) / candidates.usable_gib)
    near = relative[relative.abs() <= NEAR]
    # Evenly over the distance, or the many jobs of equal peak would crowd out the others.
    slices = near.groupby(np.floor(near * _SLICES / NEAR), sort=True)
    chosen = np.concatenate([group.index[: count // (4 * _SLICES)] for _, group in slices])
    far = relative.index[relative.abs() > NEAR][: count - len(chosen)]
    return pool.loc[np.concatenate([chosen, far])].reset_index(drop=True)


def minimum(predictor: Predictor, jobs: pd.DataFrame, max_gpus: int) -> np.ndarray:
    """Smallest total of GPUs that each job fits on, 0 where there is none; shape (jobs,)."""
    single = candidates_of(jobs.assign(number_gpus=1), predictor.memory, predictor.rows, predictor.domain)
    asked = Jobs(
        single.rows,
        single.usable_gib,
        tokens_per_sample=jobs["tokens_per_sample"].to_numpy(),
        batch_size=jobs["batch_size"].to_numpy(),
        gpus_per_worker=np.full(len(jobs), GPUS_PER_WORKER),
        max_gpus=np.full(len(jobs), max_gpus),
    )
    return np.array([(a.gpus or 0) * (a.workers or 0) for a in smallest(predictor, asked)])


def sweep_space() -> pd.DataFrame:
    """The 3,960 points of ``sweep/examples/space.yaml``."""
    import yaml

    path = Path(__file__).parents[2] / "sweep" / "examples" / "space.yaml"
    space = yaml.safe_load(path.read_text(encoding="utf-8"))["entitySpace"]
    names = [dimension["identifier"] for dimension in space]
    points = itertools.product(*(dimension["propertyDomain"]["values"] for dimension in space))
    return pd.DataFrame(points, columns=names).assign(gradient_accumulation_steps=4)


# --- the figures ------------------------------------------------------------------------------------------------------


def percent(wrong_or_right: np.ndarray | Booleans) -> float:
    return round(float(100 * np.mean(wrong_or_right)), 4)


def main_figures(predictor: Predictor, judged: Judged) -> dict[str, float]:
    """The figures of ``TARGETS``, as percentages."""
    truth = Truth(predictor.card, predictor.memory, predictor.rows, None)
    most = predictor.domain.max_gpus
    said, true = (minimum(p, judged.jobs, most) for p in (predictor, truth))
    space = sweep_space()
    sweep_said, sweep_true = (minimum(p, space, 8) for p in (predictor, truth))
    harmful = judged.said & (judged.headroom_gib < -HARMFUL * judged.candidates.usable_gib)
    values = [
        percent(judged.said == judged.true),
        percent(said == true),
        percent(harmful),
        percent(sweep_said == sweep_true),
        percent(judged.said & ~resident_state_fits(judged.candidates)),
        *_ordering(predictor, judged.jobs),
        percent(_lora_needs_more(predictor, judged.jobs)),
    ]
    return dict(zip(TARGETS, values, strict=True))


def _ordering(predictor: Predictor, jobs: pd.DataFrame) -> list[float]:
    """Violations among pairs of jobs: more tokens, more batch, fewer GPUs."""
    generator = np.random.default_rng(_SEED + 1)

    def says(table: pd.DataFrame) -> Booleans:
        return decide(predictor, candidates_of(table, predictor.memory, predictor.rows, predictor.domain))

    base = says(jobs)
    factor = generator.integers(2, 5, len(jobs))
    more_tokens = says(jobs.assign(tokens_per_sample=jobs["tokens_per_sample"] + generator.integers(1, 64, len(jobs))))
    more_batch = says(jobs.assign(batch_size=jobs["batch_size"] + jobs["number_gpus"]))
    # Fewer GPUs for the same batch: the batch is made divisible by both counts first.
    divisible = jobs.assign(batch_size=jobs["batch_size"] * factor)
    many, few = says(divisible.assign(number_gpus=jobs["number_gpus"] * factor)), says(divisible)
    single = jobs.assign(number_gpus=1)
    return [
        percent(more_tokens & ~base),
        percent(more_batch & ~base),
        percent(np.concatenate([few & ~many, says(single) & ~base])),
    ]


def _lora_needs_more(predictor: Predictor, jobs: pd.DataFrame) -> Booleans:
    most = predictor.domain.max_gpus
    full, lora = (minimum(predictor, jobs.assign(method=method), most) for method in ("full", "lora"))
    return (full > 0) & ((lora == 0) | (lora > full))


def confusion(judged: Judged) -> list[dict[str, Any]]:
    """Decisions by distance from the edge."""
    rows = []
    for low, high in ((0, 0.001), (0.001, 0.01), (0.01, 0.02), (0.02, 0.10), (0.10, np.inf)):
        inside = (judged.distance >= low) & (judged.distance < high)
        true, said = judged.true[inside], judged.said[inside]
        rows.append(
            {
                "distance from the edge": f"{low:.1%} to {high:.1%}" if np.isfinite(high) else f"over {low:.0%}",
                "jobs": int(inside.sum()),
                "fits, said so": int((true & said).sum()),
                "fits, said no": int((true & ~said).sum()),
                "does not fit, said no": int((~true & ~said).sum()),
                "does not fit, said fits": int((~true & said).sum()),
            }
        )
    return rows


def calibration(judged: Judged) -> list[dict[str, Any]]:
    """Predicted probability of fitting beside the share of jobs that do."""
    edges = [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0000001]
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (judged.probability >= low) & (judged.probability < high)
        if inside.any():
            rows.append(
                {
                    "predicted": f"{low:g} to {min(high, 1):g}",
                    "jobs": int(inside.sum()),
                    "mean prediction": round(float(judged.probability[inside].mean()), 4),
                    "share that fits": round(float(judged.true[inside].mean()), 4),
                }
            )
    return rows


def by_family(judged: Judged) -> list[dict[str, Any]]:
    """Wrong decisions by model family."""
    family = judged.jobs["model_name"].map({name: a.family for name, a in architectures().items()})
    wrong = pd.Series(judged.said != judged.true)
    return [
        {"family": name, "jobs": len(group), "wrong %": percent(group.to_numpy())}
        for name, group in wrong.groupby(family.to_numpy())
    ]


# --- models that the predictor has never seen -------------------------------------------------------------------------


def leave_one_out(folder: Path, predictor: Predictor, judged: Judged) -> list[dict[str, Any]]:
    """Train without one model, then ask about it: once with its traced figures, once with figures that its published
    shapes alone suggest (activations per token as a non-negative combination fitted to the other models)."""
    runs = pd.read_parquet(folder / TRAINING_TABLE)
    figures = read_figures(folder / FIGURES)
    rows = []
    for name in track(predictor.domain.models, description="leave one out"):
        with tempfile.TemporaryDirectory() as scratch:
            others = runs[runs["model_name"] != name]
            table = predictors.training_table(others, predictor.memory, predictor.rows, predictor.domain)
            predictors.fit(table, Path(scratch) / "predictor")
            tabular = predictors.load_tabular(Path(scratch) / "predictor", f"without {name}")
        jobs = judged.jobs[judged.jobs["model_name"] == name]
        true = judged.true[judged.jobs["model_name"] == name]
        answers = []
        for known in (figures, [_from_shapes(f, figures) if f.model_name == name else f for f in figures]):
            stranger = Predictor(predictor.card, MemoryTable(known), predictor.rows, tabular)
            candidates = candidates_of(jobs, stranger.memory, stranger.rows, stranger.domain)
            answers.append(decide(stranger, candidates))
        rows.append(
            {
                "model never seen": name,
                "jobs": len(jobs),
                "same decision %, traced": percent(answers[0] == true),
                "same decision %, from published shapes": percent(answers[1] == true),
                "wrong 'fits' %, from published shapes": percent(answers[1] & ~true),
            }
        )
    return rows


def _shapes(name: str) -> list[float]:
    """What activations per token may be proportional to: depth x width, vocabulary, width, feed-forward width."""
    architecture = architectures()[name]
    config = architecture.config
    width = config.get("hidden_size") or config["n_embd"]
    inner = config.get("intermediate_size") or config["n_inner"]
    experts = config.get("num_experts_per_tok", 1)
    return [float(architecture.layers * width), float(config["vocab_size"]), float(width), float(inner * experts)]


def _from_shapes(unknown: MemoryFigures, figures: Iterable[MemoryFigures]) -> MemoryFigures:
    """Figures with the one traced part, the moments, replaced by an estimate from the other models."""
    others = [f for f in figures if f.key[1:] == unknown.key[1:] and f.model_name != unknown.model_name]
    slopes = np.array([max(m.bytes_per_token for m in f.moments) for f in others])
    shapes = np.array([_shapes(f.model_name) for f in others])
    weights, _ = nnls(shapes / slopes[:, None], np.ones(len(others)))
    gathered = 2.0 * (unknown.root_parameters + 2 * unknown.layer_parameters)
    moments = [Moment(0.0, float(np.dot(weights, _shapes(unknown.model_name))), 0.0, gathered)]
    if not unknown.accumulating:
        moments.append(Moment(0.0, 0.0, 2.0 * unknown.trainable_parameters, gathered))
    return replace(unknown, moments=tuple(moments))


# --- real runs --------------------------------------------------------------------------------------------------------


def against_measured(predictor: Predictor, measured: Path) -> dict[str, int]:
    """Check real runs: each answered with at most the GPUs it ran on, and none said to fit one doubling above.

    Args:
        measured: CSV of runs that completed, with the columns ``model_name, method, gpu_model, number_gpus,
            tokens_per_sample, batch_size``. They accumulate gradients.
    """
    runs = pd.read_csv(measured)
    answers = recommend(runs.assign(max_gpus=runs["number_gpus"]), predictor.card.version)
    runs["tokens_per_gpu"] = runs["batch_size"] * runs["tokens_per_sample"] // runs["number_gpus"]
    frontier = runs.groupby(["model_name", "method", "gpu_model", "number_gpus"], as_index=False)[
        "tokens_per_gpu"
    ].max()
    doubled = frontier.assign(
        batch_size=frontier["number_gpus"],
        tokens_per_sample=2 * frontier["tokens_per_gpu"],
        gradient_accumulation_steps=4,
    )
    said = decide(predictor, candidates_of(doubled, predictor.memory, predictor.rows, predictor.domain))
    return {
        "runs": len(runs),
        "runs answered with at most their GPUs": int(answers["can_recommend"].sum()),
        "frontiers": len(frontier),
        "doublings above a frontier said to fit": int(said.sum()),
    }


# --- writing it down --------------------------------------------------------------------------------------------------


def _meets(key: str, value: float, target: float) -> bool:
    return value >= target if TARGETS[key][0] == ">=" else value <= target


def _section(evaluation: dict[str, Any], version: str) -> str:
    """The version's section of ``AutoGluonModels/README.md``."""
    figures = [
        {"figure": key, "required": f"{sign} {required:g} %", "aim": f"{sign} {aim:g} %", "measured": f"{value:g} %"}
        for (key, (sign, required, aim)), value in zip(TARGETS.items(), evaluation["figures"].values(), strict=True)
    ]
    parts = [
        f"{evaluation['jobs']:,} jobs that training never saw, half of them within {NEAR:.0%} of usable memory from "
        "the edge:",
        markdown(figures),
        "Decisions by distance from the edge, as a share of usable memory:",
        markdown(evaluation["confusion"]),
        "Calibration of the predicted probability of fitting:",
        markdown(evaluation["calibration"]),
        "Wrong decisions by family:",
        markdown(evaluation["by_family"]),
        f"![What the predictor gets wrong, and where](evaluation-{version}.png)",
        "Leave one model out: what is said of a model that training never saw, near the edge as above. *Traced* is "
        "what adding an architecture means here; *from published shapes* is what its figures would be worth without a "
        "trace.",
        markdown(evaluation["leave_one_out"]),
    ]
    if "measured" in evaluation:
        parts += ["Against real runs of mistral-7b-v0.1 (not shipped):", markdown([evaluation["measured"]])]
    return "\n\n".join(parts)


def _domain(card: Card) -> str:
    """What the version answers for: its GPUs, its models with sources, and what is assumed of them."""
    known = architectures()
    gpus = [
        {"GPU": f"`{name}`", "usable memory, GiB": f"{gpu.usable_gib:g}", "also known as": _codes(gpu.aliases)}
        for name, gpu in card.domain.gpus.items()
    ]
    models = [
        {
            "model": f"[{name}]({known[name].source.split()[0]})",
            "parameters": f"{known[name].parameters:,}",
            "LoRA targets": ", ".join(known[name].lora_targets),
            "most tokens": model.max_tokens_per_sample or "",
            "also known as": _codes(model.aliases),
        }
        for name, model in card.domain.models.items()
    ]
    assumed = [f"- **{name}**: {known[name].assumption}" for name in card.domain.models if known[name].assumption]
    return "\n\n".join([markdown(gpus), markdown(models), "Some entries rest on an assumption:", "\n".join(assumed)])


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def draw_picture(judged: Judged, evaluation: dict[str, Any], path: Path) -> None:
    """Three panels: decisions near the edge, calibration, leave one out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    edge, calibrated, unseen = figure.subplots(1, 3)
    relative = 100 * judged.headroom_gib / judged.candidates.usable_gib
    bins = np.linspace(-10, 10, 81)
    for says, color, text in ((True, "#0072B2", "said to fit"), (False, "#E69F00", "said not to fit")):
        edge.hist(relative[judged.said == says], bins=bins, color=color, alpha=0.8, label=text)
    edge.axvline(0, color="black", linewidth=1)
    edge.set(xlabel="true headroom, % of usable memory", ylabel="jobs", title="Decisions near the edge")
    edge.legend(frameon=False)
    points = evaluation["calibration"]
    calibrated.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    calibrated.scatter([p["mean prediction"] for p in points], [p["share that fits"] for p in points], color="#0072B2")
    for p in points:
        calibrated.annotate(f"{p['jobs']:,}", (p["mean prediction"], p["share that fits"]), fontsize=8,
                            xytext=(4, -10), textcoords="offset points")  # fmt: skip
    calibrated.set(xlabel="predicted probability of fitting", ylabel="share that fits", title="Calibration (jobs)")
    rows = evaluation["leave_one_out"]
    names = [row["model never seen"] for row in rows]
    unseen.barh(names, [row["same decision %, from published shapes"] for row in rows], color="#E69F00",
                label="from published shapes")  # fmt: skip
    unseen.plot([row["same decision %, traced"] for row in rows], names, "o", color="#0072B2", label="traced")
    unseen.set(xlabel="same decision, %", xlim=(50, 100.5), title="A model never seen")
    unseen.tick_params(axis="y", labelsize=7)
    unseen.invert_yaxis()
    unseen.legend(frameon=True, fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def evaluate(version: str, measured: Path | None = None) -> dict[str, Any]:
    """Measure a version, released or just made, and write the figures down.

    Returns:
        The card's ``evaluation``. ``RELEASED`` has the card's digest from then on, in this process.
    """
    folder = MODELS / version
    # Whoever makes a version believes what lies there: its digest cannot be in the code yet.
    RELEASED[version] = predictors.digest((folder / CARD).read_bytes())
    predictor = predictors.load(version)
    judged = judge(predictor, evaluation_jobs(predictor, JOBS))
    evaluation: dict[str, Any] = {
        "jobs": len(judged.jobs),
        "threshold": predictor.card.threshold,
        "figures": main_figures(predictor, judged),
        "confusion": confusion(judged),
        "calibration": calibration(judged),
        "by_family": by_family(judged),
        "leave_one_out": leave_one_out(folder, predictor, judged),
    }
    if measured is not None:
        evaluation["measured"] = against_measured(predictor, measured)
    elif "measured" in predictor.card.evaluation:
        evaluation["measured"] = predictor.card.evaluation["measured"]
    RELEASED[version] = write_card(folder, predictor.card.model_copy(update={"evaluation": evaluation}))
    for what, section in (("evaluation", _section(evaluation, version)), ("domain", _domain(predictor.card))):
        write_section(MODELS / "README.md", f"{what} {version}", "make evaluate", section)
    draw_picture(judged, evaluation, MODELS / f"evaluation-{version}.png")
    return evaluation


def main(
    version: Annotated[str, typer.Argument(help="released version to evaluate")] = DEFAULT,
    measured: Annotated[Path | None, typer.Option(help="CSV of real runs that completed", exists=True)] = None,
) -> None:
    """Measure a predictor version against the traces; exit with 1 if a required figure is missed."""
    console = Console()
    evaluation = evaluate(version, measured)
    missed = []
    for key, value in evaluation["figures"].items():
        sign, required, aim = TARGETS[key]
        met = _meets(key, value, required)
        missed += [] if met else [key]
        console.print(
            f"{key:45} {value:9.4f} %   required {sign} {required:g} %, aim {sign} {aim:g} %", "" if met else "MISSED"
        )
    for key, value in evaluation.get("measured", {}).items():
        console.print(f"{key:45} {value}")
    console.print(f"written to {MODELS / version / CARD}")
    print(release(version, RELEASED[version]))
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
