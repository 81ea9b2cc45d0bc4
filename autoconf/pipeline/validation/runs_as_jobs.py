"""Real runs of fms-acceleration's benchmarks as a user's table of runs: each as the job that comes nearest to it.

``python -m autoconf.pipeline.validation.runs_as_jobs RUNS.csv OUTPUT.csv`` writes the fields of jobs, ``number_gpus``,
``failed`` and ``peak_allocated_gib``. What no field can say is lost, as it is in any such table: fused kernels other than the loss,
adapters that every GPU holds whole, the libraries' versions, tokens that were added to a vocabulary, dropout of LoRA.
GPTQ stands as QLoRA, whose packed weights are as large.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autoconf.pipeline.validation.benchmark_runs import Run, read_runs

_GPU = "NVIDIA-A100-SXM4-80GB"
# Samples are packed to as much at most: a run notes tokens of a micro-batch, which is all that memory asks.
_SAMPLE, _SHORT_SAMPLE = 4096, 2048


def job(run: Run) -> dict[str, Any]:
    """A run as a row of a user's table."""
    stack, adapters = run.stack, run.method != "full"
    sample = _SHORT_SAMPLE if run.tokens_per_gpu % _SAMPLE or run.architecture.family == "gpt_bigcode" else _SAMPLE
    return {
        "model_name": run.architecture.name,
        "method": run.method,
        "gpu_model": _GPU,
        "number_gpus": run.gpus,
        "tokens_per_sample": sample,
        "per_device_train_batch_size": run.tokens_per_gpu // sample,
        "gradient_accumulation_steps": 4 if stack.gradient_accumulation else 1,
        "stack": "fms-hf-tuning",
        "optim": stack.optim,
        "mixed_precision": stack.mixed_precision,
        "gradient_checkpointing": stack.gradient_checkpointing,
        "loss": "full" if stack.loss == "full" else "chunked",
        "sharding": stack.sharding,
        "lora_r": stack.lora_r if adapters else None,
        "lora_targets": "attention" if adapters else None,
        "peak_allocated_gib": run.peak_gib,
        "failed": int(run.failed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a table of runs as jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs",
        type=Path,
        help="CSV of runs, as autoconf/pipeline/validation/benchmark_runs.py reads fms-acceleration's",
    )
    parser.add_argument("output", type=Path, help="where to write the jobs")
    options = parser.parse_args(arguments)
    jobs = pd.DataFrame([job(run) for run in read_runs(options.runs)]).astype({"lora_r": "Int64"})
    jobs.to_csv(options.output, index=False, lineterminator="\n")
    print(f"{len(jobs)} runs written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
