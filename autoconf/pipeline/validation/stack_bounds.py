"""Replay jobs whose stack is not recorded on every stack that their source allows: bounds of what they need.

``python -m autoconf.pipeline.validation.stack_bounds`` takes the llama3.2-3b jobs of ``replay.known_runs``. They ran on
one A100 under fms-hf-tuning; its release, kernels, collator and optimizer are not recorded. About ten minutes for each
release; a word selects releases: ``... stack_bounds 2.6``. ``--run "Llama-3-8B LoRA"`` takes another job, of which only
the libraries are open, and which keeps the other settings. ``--run Qwen2.5-32B`` takes the job of s1, whose repository
states its stack; ``--tokens`` replaces the length of its samples, of which only the most is known.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from autoconf.pipeline.catalog import gpu_types
from autoconf.pipeline.replay.judge import overhead_gib
from autoconf.pipeline.replay.known_runs import RUNS, KnownRun
from autoconf.pipeline.report import markdown
from autoconf.pipeline.validation import environments
from autoconf.pipeline.validation.environments import Libraries

_OF_FMS = "llama3.2-3b"  # the runs of fms-hf-tuning
_OF_S1 = "Qwen2.5-32B"
_S1 = "s1, transformers 4.46.1"
# Releases of fms-hf-tuning by the range of transformers in their pyproject.toml, each with a version in the range.
RELEASES: dict[str, Libraries | None] = {
    "2.1 to 2.5, transformers 4.45": Libraries("4.45.2", "0.13.2", "1.0.1", "0.43.3"),
    "2.6, transformers 4.48": Libraries("4.48.1", "0.13.2", "1.0.1", "0.43.3"),
    "2.7 and 2.8, transformers 4.49": Libraries("4.49.0", "0.13.2", "1.0.1", "0.43.3"),
    "3.1, transformers 4.55": Libraries("4.55.4", "0.18.0rc0", "1.11.0", "0.48.2"),
    "none, transformers 5 as installed": None,
    # simplescaling/s1 at 0ad4b3d, requirements.txt; it has no PEFT and no bitsandbytes.
    _S1: Libraries("4.46.1", "0.13.2", "1.0.1", "0.43.3"),
}
# simplescaling/s1, train/sft_multinode.sh: gradient_checkpointing without kwargs, which transformers 4.46.1 makes
# reentrant (modeling_utils.py, gradient_checkpointing_enable). train/fsdp_config_qwen.json has no backward_prefetch,
# which training_args.py reads as NO_PREFETCH. Loading by the first process (fsdp_config_qwen_cpu.json) holds as much.
_SETTINGS_OF_S1 = {"gradient_checkpointing": "reentrant"}
_KERNELS = ((), ("fast_loss", "fast_rms_layernorm", "fast_rope_embeddings"))
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


@dataclass(frozen=True)
class Choice:
    """What a source leaves open: a stack, and whether samples are concatenated instead of padded."""

    release: str
    kernels: tuple[str, ...]
    optim: str
    padding_free: bool

    @classmethod
    def only_libraries(cls, release: str, run: KnownRun) -> Choice:
        """The stack of a run under the libraries of a release."""
        return cls(release, run.job.stack.kernels, run.job.stack.optim, padding_free=False)

    def input(self, run: KnownRun) -> dict[str, Any]:
        """The input of ``replay_jobs`` for a run on this stack."""
        samples, tokens = run.batches.samples, run.batches.tokens_per_sample
        if self.padding_free:
            samples, tokens = 1, samples * tokens
        chosen = {"kernels": self.kernels, "optim": self.optim, "gradient_accumulation": run.batches.accumulation > 1}
        of_s1 = run.name.startswith(_OF_S1)
        stack = {**run.settings, **(_SETTINGS_OF_S1 if of_s1 else {}), **chosen}
        return {
            "architecture": run.job.architecture.model_dump(),
            "method": run.method,
            "stack": stack,
            "gpus": run.gpus,
            "prefetches": not of_s1,
            "compute_capability": int(gpu_types()[run.gpu].compute_capability),
            # The second micro-batch finds the gradients of the first; a third one would find the same.
            "batches": (samples, tokens, min(run.batches.accumulation, 2)),
            "capacity_gib": _room_gib(run),
            "least": True,
        }


def _room_gib(run: KnownRun) -> float:
    """What PyTorch can reserve."""
    return gpu_types()[run.gpu].usable_gib - overhead_gib(run.gpus, run.gpu)


@dataclass(frozen=True)
class Replay:
    """A run on one stack; GiB."""

    run: KnownRun
    choice: Choice
    needed_gib: float
    runs: bool


def choices(run: KnownRun, releases: Iterable[str]) -> Iterator[Choice]:
    """Yield all stacks of some releases that the source of a run allows."""
    releases = [release for release in releases if (release == _S1) == run.name.startswith(_OF_S1)]
    if not run.name.startswith(_OF_FMS):
        yield from (Choice.only_libraries(release, run) for release in releases)
        return
    for release, kernels, optim, padding_free in itertools.product(releases, _KERNELS, _OPTIMIZERS, (False, True)):
        yield Choice(release, kernels, optim, padding_free)


def replays(runs: Sequence[KnownRun], releases: Sequence[str]) -> list[Replay]:
    """Replay runs on all stacks of some releases, in environments with their libraries."""
    found = []
    for release in releases:
        pairs = [(run, choice) for run in runs for choice in choices(run, [release])]
        if not pairs:
            continue
        inputs = [choice.input(run) for run, choice in pairs]
        distinct = list({repr(one): one for one in inputs}.values())
        figures = environments.run(RELEASES[release], "autoconf.pipeline.validation.replay_jobs", distinct)
        known = {repr(one): figure for one, figure in zip(distinct, figures, strict=True)}
        for (run, choice), one in zip(pairs, inputs, strict=True):
            figure = known[repr(one)]
            if "problem" in figure:
                raise ValueError(f"{run.name}, {choice}: {figure['problem']}")
            least = figure["least_gib"]
            needed = least + overhead_gib(run.gpus, run.gpu)
            found.append(Replay(run, choice, needed, not figure["failed"] and least <= _room_gib(run)))
    return found


def rows(found: Sequence[Replay]) -> list[dict[str, Any]]:
    """A line for each run, release and set of kernels: the bounds over collator and optimizer."""
    lines: dict[tuple[str, str, bool], list[Replay]] = {}
    for one in found:
        lines.setdefault((one.run.name, one.choice.release, bool(one.choice.kernels)), []).append(one)
    return [
        {
            "run": run,
            "release, or libraries": release,
            "kernels": "fast" if fast else "plain",
            "needed, foreach": _bounds(ones, "adamw_torch"),
            "needed, fused": _bounds(ones, "adamw_torch_fused"),
            "stacks that run": f"{sum(one.runs for one in ones)} of {len(ones)}",
        }
        for (run, release, fast), ones in lines.items()
    ]


def _with_tokens(run: KnownRun, tokens: int) -> KnownRun:
    if not tokens:
        return run
    name = f"{run.name}, replayed with {tokens:,} tokens"
    return replace(run, name=name, batches=replace(run.batches, tokens_per_sample=tokens))


def _bounds(found: Sequence[Replay], optim: str) -> str:
    needed = [one.needed_gib for one in found if one.choice.optim == optim]
    if not needed:
        return "-"
    low, high = f"{min(needed):.2f}", f"{max(needed):.2f}"
    return low if low == high else f"{low} to {high}"


def main(
    word: Annotated[str, typer.Argument(help="A part of the names of releases.")] = "",
    run: Annotated[str, typer.Option(help="How the names of the runs begin.")] = _OF_FMS,
    tokens: Annotated[int, typer.Option(help="Tokens of a sample; 0 for those of the run.")] = 0,
) -> None:
    """Replay and print the table."""
    runs = [_with_tokens(known, tokens) for known in RUNS if known.name.startswith(run)]
    releases = [release for release in RELEASES if word in release]
    if not runs:
        print(f"no run begins with {run!r}: {'; '.join(known.name for known in RUNS)}", file=sys.stderr)
        raise typer.Exit(2)
    if not releases:
        print(f"no release has {word!r} in its name: {'; '.join(RELEASES)}", file=sys.stderr)
        raise typer.Exit(2)
    found = replays(runs, releases)
    print(markdown(rows(found)))
    for known in runs:
        needed = [one.needed_gib for one in found if one.run is known]
        does = sum(one.runs for one in found if one.run is known)
        print(f"\n{known.name}: {min(needed):.2f} to {max(needed):.2f} GiB; runs on {does} of {len(needed)} stacks.")


if __name__ == "__main__":
    typer.run(main)
