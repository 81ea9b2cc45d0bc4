"""Evaluate a version, and write the figures into its card, its pages in ``docs/versions`` and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from autoconf.pipeline.calibration import fragmentation, real_rows, replayed_rows
from autoconf.pipeline.calibration.held_out import real_calibration, side_by_side
from autoconf.pipeline.catalog import NEWEST, architectures, gpu_types
from autoconf.pipeline.release.evaluation import NEAR, TARGETS, Judged, measured, sweep_space
from autoconf.pipeline.release.train import LEFT_OUT, release
from autoconf.pipeline.release.version_folder import write_card
from autoconf.pipeline.report import PAGES, VALIDATION, markdown, write_section
from autoconf.predictor import cards, registry
from autoconf.predictor.cards import CARD, Card
from autoconf.predictor.registry import MODELS
from autoconf.predictor.user_versions import VersionFolder

# Names in released cards, which cannot change, and the names in documents.
_HEADINGS = {
    "fits, said so": "true positive",
    "fits, said no": "false negative",
    "does not fit, said no": "true negative",
    "does not fit, said fits": "false positive",
    "failed, said to fit": "false positives",
    "finished, said not to": "false negatives",
}


def _in_words(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{_HEADINGS.get(key, key): cell for key, cell in row.items()} for row in rows]


def _meets(key: str, value: float, target: float) -> bool:
    return value >= target if TARGETS[key][0] == ">=" else value <= target


def evaluation_section(evaluation: dict[str, Any], version: str) -> str:
    """The section of the version's page ``docs/versions/evaluation-VERSION.md``."""
    figures = [
        {
            "figure": key,
            "required": f"{sign} {required:g} %",
            "target": f"{sign} {target:g} %",
            "measured": f"{value:g} %",
        }
        for (key, (sign, required, target)), value in zip(TARGETS.items(), evaluation["figures"].values(), strict=True)
    ]
    return "\n\n".join(
        [
            f"{evaluation['jobs']:,} jobs that training never saw, of all models, methods, GPU types and presets, more "
            f"than a third with random settings, half within {NEAR:.0%} of usable memory from the edge:",
            markdown(figures),
            "Contradictions among pairs of these jobs:",
            markdown(evaluation["contradictions"]),
            "What the version promises, checked on the figures of the whole domain when it was made:",
            markdown(evaluation["orderings"]),
            "By stack:",
            markdown(evaluation["by_stack"]),
            "By family:",
            markdown(evaluation["by_family"]),
            *(["By setting:", markdown(evaluation["by_setting"])] if "by_setting" in evaluation else []),
            "Decisions by distance from the edge, as a share of usable memory (positive: the job fits):",
            markdown(_in_words(evaluation["confusion"])),
            f"![What the predictor gets wrong, and where](evaluation-{version}.png)",
        ]
    )


def real_runs_section(evaluation: dict[str, Any]) -> str:
    """Tables about predictions of held-out real runs."""
    return "\n\n".join(
        [
            markdown(_in_words(evaluation["side_by_side"])),
            "Predicted probability, and what happened, on held-out runs:",
            markdown(evaluation["calibration"]),
            *_replays(evaluation),
        ]
    )


def _replays(evaluation: dict[str, Any]) -> list[str]:
    if "replays" not in evaluation:
        return []
    return [
        "Replays of random jobs of models that were not learned from, each on up to three capacities near its need:",
        markdown(evaluation["replays"]),
    ]


def domain_section(card: Card) -> str:
    """The domain of a version: its GPUs, its models with sources, and their assumptions."""
    known = architectures()
    gpus = [
        {
            "GPU": f"`{name}`",
            "usable memory, GiB": f"{gpu.usable_gib:g}",
            "also known as": _codes(gpu.aliases),
            "source": gpu_types()[name].source,
        }
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
    left_out = [f"- **{name}**: {why}" for name, why in LEFT_OUT.items()]
    return "\n\n".join(
        [
            markdown(gpus),
            markdown(models),
            "Some entries rest on an assumption:",
            "\n".join(assumed),
            "In the table of architectures, but not answered for:",
            "\n".join(left_out),
        ]
    )


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def draw_picture(judged: Judged, evaluation: dict[str, Any], path: Path) -> None:
    """Two panels: decisions near the edge, and calibration on real runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    edge, calibrated = figure.subplots(1, 2)
    relative = 100 * judged.headroom_gib / judged.candidates.usable_gib
    bins = np.linspace(-10, 10, 81)
    for says, color, text in ((True, "#0072B2", "predicted to fit"), (False, "#E69F00", "predicted not to fit")):
        edge.hist(relative[judged.predicted == says], bins=bins, color=color, alpha=0.8, label=text)
    edge.axvline(0, color="black", linewidth=1)
    edge.set(xlabel="true headroom, % of usable memory", ylabel="jobs", title="Decisions near the edge")
    edge.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)  # below, as bars fill the panel
    draw_calibration(calibrated, evaluation["calibration"])
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_calibration(axes: Any, calibration: list[dict[str, Any]]) -> None:
    """Draw predicted and measured shares of runs that finish: a row for each group of runs, so that none overlap."""
    groups = sorted(calibration, key=lambda group: (group["held out by"], group["mean prediction"]))
    rows = range(len(groups))
    predicted, finished = ([group[key] for group in groups] for key in ("mean prediction", "share that finished"))
    axes.hlines(rows, predicted, finished, color="0.7", linewidth=2, zorder=1)
    axes.scatter(predicted, rows, s=60, facecolor="white", edgecolor="#0072B2", label="predicted")
    axes.scatter(finished, rows, s=22, color="#E69F00", label="measured")
    axes.set_yticks(rows, [f"{group['runs']} runs, by {group['held out by']}" for group in groups])
    axes.set(xlabel="share of runs that finish", title="Real runs held out, by table or by model", xlim=(-0.05, 1.05))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2)


def _real_runs(card: Card) -> dict[str, Any]:
    """What is said of real runs by what was learned from others in the way of the version."""
    if card.fragmentation is None:
        return {"side_by_side": side_by_side(), "calibration": real_calibration()}
    jobs, rows = fragmentation.read_jobs(), real_rows.read_rows()
    probabilities = {split: fragmentation.real_probabilities(jobs, rows, split) for split in ("table", "model")}
    return {
        "side_by_side": replayed_rows.side_by_side(replayed_rows.read(), probabilities),
        "calibration": real_calibration(probabilities),
        "replays": fragmentation.held_out(jobs, rows).to_dict("records"),
    }


def _real_runs_page(card: Card) -> Path:
    return VALIDATION if card.fragmentation is None else PAGES / f"evaluation-{card.version}.md"


def evaluate(version: str) -> tuple[dict[str, Any], str]:
    """Evaluate a released or new version, and write the figures.

    Returns:
        The card's ``evaluation``, and the digest of the card with it.
    """
    folder = MODELS / version
    # The digest of a new version is not in the code yet, so trust the folder.
    predictor = registry.load_from(VersionFolder(folder, cards.digest((folder / CARD).read_bytes())))
    families = {name: architecture.family for name, architecture in architectures().items()}
    judged, figures = measured(predictor, families, space=sweep_space(predictor.card))
    evaluation: dict[str, Any] = {
        **figures,
        "orderings": predictor.card.evaluation["orderings"],
        **_real_runs(predictor.card),
    }
    sha256 = write_card(folder, predictor.card.model_copy(update={"evaluation": evaluation}))
    for page, what, section in (
        (PAGES / f"evaluation-{version}.md", f"evaluation {version}", evaluation_section(evaluation, version)),
        (PAGES / f"domain-{version}.md", f"domain {version}", domain_section(predictor.card)),
        (_real_runs_page(predictor.card), "real runs", real_runs_section(evaluation)),
    ):
        write_section(page, what, "make evaluate", section)
    draw_picture(judged, evaluation, PAGES / f"evaluation-{version}.png")
    return evaluation, sha256


def main(version: Annotated[str, typer.Argument(help="version to evaluate")] = NEWEST) -> None:
    """Compare a predictor version with traces and real runs; exit with 1 if a required figure is missed."""
    console = Console()
    evaluation, sha256 = evaluate(version)
    missed = []
    for key, value in evaluation["figures"].items():
        sign, required, target = TARGETS[key]
        met = _meets(key, value, required)
        missed += [] if met else [key]
        console.print(
            f"{key:45} {value:9.4f} %   required {sign} {required:g} %, target {sign} {target:g} %",
            "" if met else "MISSED",
        )
    for row in evaluation["contradictions"]:
        missed += [row["pairs where"]] if row["found"] else []
        console.print(f"{row['pairs where']:55} {row['found']} of {row['pairs']}", "MISSED" if row["found"] else "")
    for row in (*evaluation["by_stack"], *evaluation["by_family"], *evaluation["by_setting"]):
        missed += [str(row)] if row["same decision %"] < 99.5 or row["impossible %"] else []
        console.print(*row.values())
    console.print(f"written to {MODELS / version / CARD}")
    print(release(version, sha256))
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
