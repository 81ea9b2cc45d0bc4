"""Make a predictor version: traced architectures -> labelled table -> AutoGluon predictor -> a folder with its card."""

from __future__ import annotations

import pickle
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from autoconf import predictors
from autoconf.build import virtual_runs
from autoconf.build.architectures import gpus, models
from autoconf.errors import AutoConfError
from autoconf.figures import write_figures
from autoconf.memory import GIB, MemoryTable
from autoconf.predictors import CHECK_JOBS, FIGURES, LABEL, PREDICTOR, TRAINING_TABLE, Card, Domain

# What each version covers. A released version is frozen: same name, same answers.
DOMAINS = {
    "1.1.0": Domain(
        models=models(
            [
                "granite-3.1-2b", "granite-20b-v2", "granite-13b-v2", "granite-3-8b", "granite-3.1-3b-a800m-instruct",
                "granite-3.1-8b-instruct", "granite-34b-code-base", "granite-3b-code-base-128k", "granite-7b-base",
                "granite-8b-code-base", "granite-8b-japanese", "llama-13b", "llama-7b", "llama2-70b", "llama3-70b",
                "llama3-8b", "llama3.1-405b", "llama3.1-70b", "llama3.1-8b", "mistral-123b-v2", "mistral-7b-v0.1",
                "mixtral-8x7b-instruct-v0.1", "allam-1-13b",
            ]
        ),
        methods=["full", "lora"],
        gpus={n: gpus()[n] for n in ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe", "NVIDIA-H100-PCIe", "L40S")},
        max_tokens_per_sample=16_384,
        max_batch_size=1_024,
        max_gpus=64,
    )
}  # fmt: skip

# A wrong "fits" costs a failed job, a wrong "no" one GPU more, so a job is said to fit only when that is all but sure.
THRESHOLD = 0.9
_CHECKS = 400


def train(version: str, folder: Path) -> str:
    """Make a version in ``folder``, which it replaces.

    Returns:
        The digest of its card.

    Raises:
        AutoConfError: AutoGluon does not import, or the trained predictor is inconsistent.
    """
    domain = DOMAINS[version]
    figures = virtual_runs.traces(list(domain.models))
    memory, rows = MemoryTable(figures), {f.key: row for row, f in enumerate(figures)}
    runs = virtual_runs.training_runs(figures, domain)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name) / folder.name
        scratch.mkdir()
        write_figures(figures, scratch / FIGURES)
        runs.to_parquet(scratch / TRAINING_TABLE, compression="zstd", index=False)
        predictors.fit(predictors.training_table(runs, memory, rows, domain), scratch / PREDICTOR)
        _forget_paths(scratch / PREDICTOR)
        card = Card(
            version=version,
            created=date.today().isoformat(),
            domain=domain,
            threshold=THRESHOLD,
            libraries=predictors.installed_libraries(),
            files={},
        )
        tabular = predictors.load_tabular(scratch / PREDICTOR, version)
        predictor = predictors.Predictor(card, memory, rows, tabular)
        check_ordering(predictor)
        checks = _check_jobs(runs)
        fits = predictor.fits(predictors.candidates_of(checks, memory, rows, domain))
        checks.assign(**{LABEL: fits.astype(int)}).to_csv(scratch / CHECK_JOBS, index=False, lineterminator="\n")
        digest = write_card(scratch, card.model_copy(update={"files": predictors.digests(scratch)}))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return digest


def check_ordering(predictor: predictors.Predictor) -> None:
    """Refuse a version whose answers could contradict each other.

    Given the figures, the predictor's only input that a job moves is the memory it leaves free, and the probability of
    fitting cannot fall as that grows (a monotone constraint). So answers keep an ordering wherever free memory does:

    - more tokens or batch: every moment's bytes per token are >= 0;
    - more GPUs: every term of the closed form falls with their number but what sharding itself adds, from one GPU to
      two: gathered layers and a larger reserve. Checked for every model, over all tokens;
    - LoRA before full fine-tuning: checked for every model, over all tokens and GPU counts.

    Raises:
        AutoConfError: one of these does not hold.
    """
    memory, rows = predictor.memory, predictor.rows
    edges = [_edge_gib(predictor, sharded) for sharded in (0.0, 1.0)]
    tokens = np.unique(np.geomspace(1, predictor.domain.max_batch_size * predictor.domain.max_tokens_per_sample, 400))
    one, two = np.ones(len(tokens), np.int64), np.full(len(tokens), 2)
    for (model, method, accumulating), row in rows.items():
        at = np.full(len(tokens), row)
        gained = (memory.peak_bytes(at, one, tokens) - memory.peak_bytes(at, two, tokens / 2)) / GIB
        if (gained < edges[1] - edges[0]).any():
            raise AutoConfError(f"{model}, {method}: two GPUs can hold less than one")
        if (np.diff(memory.peak_bytes(at, one, tokens)) < 0).any():
            raise AutoConfError(f"{model}, {method}: more tokens can take less memory")
        if method == "lora":
            full = np.full(len(tokens), rows[model, "full", accumulating])
            for count in range(1, predictor.domain.max_gpus + 1):
                gpus = np.full(len(tokens), count)
                if (memory.peak_bytes(at, gpus, tokens) > memory.peak_bytes(full, gpus, tokens)).any():
                    raise AutoConfError(f"{model}: LoRA can take more memory than full fine-tuning on {count} GPUs")


def _edge_gib(predictor: predictors.Predictor, sharded: float) -> float:
    """The free memory from which on the predictor says that a job fits; it says so monotonously, which is checked."""
    free = np.linspace(0, 6, 6001)
    fits = predictor.answers(pd.DataFrame({"free_gib": free, "sharded": sharded}))
    if fits[0] or not fits[-1] or (np.diff(fits.astype(int)) < 0).any():
        raise AutoConfError(f"the predictor is not a step in free memory between 0 and 6 GiB (sharded: {sharded:g})")
    return float(free[fits.argmax()])


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
    (folder / predictors.CARD).write_bytes(content)
    return predictors.digest(content)


def release(version: str, digest: str) -> str:
    """What has to be done before a version answers."""
    return f'RELEASED in autoconf/predictors.py must have this digest of the card:\n"{version}": "{digest}"'


def _check_jobs(runs: pd.DataFrame) -> pd.DataFrame:
    """A few hundred jobs of the training table, every model and method among them, without their labels."""
    shuffled = runs.sample(frac=1, random_state=0)
    each = shuffled.groupby(["model_name", "method"], sort=False).head(-(-_CHECKS // 46))
    return each.drop(columns=["peak_gib", LABEL]).sort_index()


def main() -> None:
    """Make the version named on the command line (the newest by default) in the package's own folder."""
    version = sys.argv[1] if len(sys.argv) > 1 else predictors.DEFAULT
    folder = predictors.MODELS / version
    digest = train(version, folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"made {folder} ({size / 2**20:.1f} MiB)")
    print(release(version, digest))


if __name__ == "__main__":
    main()
