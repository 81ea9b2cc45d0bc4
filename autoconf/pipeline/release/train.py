"""Make a predictor version: traced profiles and real runs -> AutoGluon predictor -> a folder with its card."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from autoconf.jobs.stack import (
    Allocator,
    Checkpointing,
    Dtype,
    GradientSync,
    Loading,
    MixedPrecision,
    Objective,
    Offload,
    Optim,
    Quantization,
    Sharding,
    TrainedModules,
    Upcast,
)
from autoconf.memory.store import MOMENTS, write_models
from autoconf.memory.ways import RULES
from autoconf.pipeline.calibration import reserve
from autoconf.pipeline.calibration.fragmentation import by_fragmentation, learned_margin, read_jobs
from autoconf.pipeline.calibration.real_rows import read_rows
from autoconf.pipeline.catalog import NEWEST, architectures, gpus, models
from autoconf.pipeline.release.version_folder import SEED, complete, new_version
from autoconf.pipeline.tracing.cache import traces
from autoconf.predictor import cards, registry
from autoconf.predictor.cards import Card, Domain

_BASE = "2.0.0"  # the version whose moments the new one continues
# Architectures of the table that the version does not support.
LEFT_OUT = {
    "granite-8b-japanese": "its shapes are an assumption, which a real run contradicts",
    "phi-2": "its trace fails",
    **dict.fromkeys(["glm-4.5-air", "deepseek-v3", "llama-4-scout"], "only its trace is missing"),
}


def domain(names: list[str], version: str) -> Domain:
    """The domain of a version: all known GPU types, and some models."""
    after_2_0_0 = tuple(map(int, version.partition("+")[0].split("."))) > (2, 0, 0)
    return Domain(
        models=models(names, later_aliases=True),
        methods=["full", "lora", "qlora"],
        gpus=gpus(later_aliases=True, after_2_0_0=after_2_0_0),
        max_tokens_per_sample=131_072,
        max_batch_size=4_096,
        max_gpus=512,
        **(all_settings() if after_2_0_0 else {}),
    )


def all_settings() -> dict[str, list[Any]]:
    """The values of settings that versions up to 2.0.0 do not know."""
    choices = {
        "torch_dtype": Dtype, "mixed_precision": MixedPrecision,
        "optim": Optim, "sharding": Sharding, "upcast_unquantized": Upcast, "offload": Offload, "allocator": Allocator,
        "objective": Objective, "quantization": Quantization, "gradient_sync": GradientSync,
        "loading": Loading, "gradient_checkpointing": Checkpointing, "trained_modules": TrainedModules,
    }  # fmt: skip
    return {name: list(get_args(values)) for name, values in choices.items()} | {"use_dora": [False, True]}


def train(version: str, folder: Path) -> str:
    """Make a version in ``folder``, which is replaced.

    Returns:
        The digest of its card.

    Raises:
        AutoConfError: AutoGluon does not import, or the trained predictor breaks a guaranteed ordering.
    """
    names = [name for name in architectures() if name not in LEFT_OUT]
    margin = learned_margin(read_jobs(), read_rows())
    card = Card(
        version=version,
        created=date.today().isoformat(),
        domain=domain(names, version),
        threshold=reserve.THRESHOLD,
        reserve=margin.reserve,
        fragmentation=margin.fragmentation,
        outside_pytorch=margin.outside,
        rules=RULES,
        libraries={},
        files={},
        base={f"{_BASE}/{MOMENTS}": cards.digest((registry.MODELS / _BASE / MOMENTS).read_bytes())},
    )
    with new_version(folder) as scratch:
        write_models(traces(names, registry.MODELS / _BASE, folder), scratch, registry.MODELS / _BASE)
        generator = np.random.default_rng(SEED)
        table = reserve.table_of(margin.learned, by_fragmentation(margin), generator, reserve.VIRTUAL_ROWS)
        return complete(scratch, card, table)


def release(version: str, digest: str) -> str:
    """The remaining step before a version can be used."""
    return f'RELEASED in autoconf/predictor/registry.py must have this digest of the card:\n"{version}": "{digest}"'


def main(version: Annotated[str, typer.Argument(help="version to make")] = NEWEST) -> None:
    """Make a predictor version in the package's own folder."""
    folder = registry.MODELS / version
    digest = train(version, folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"made {folder} ({size / 2**20:.1f} MiB)")
    print(release(version, digest))


if __name__ == "__main__":
    typer.run(main)
