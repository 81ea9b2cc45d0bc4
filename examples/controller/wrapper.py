"""Answer one job for a Kubernetes controller: ``python wrapper.py OUT MODEL METHOD GPU TOKENS BATCH VERSION``.

The answer is written to the file OUT as JSON; its folder must exist. The exit code is 0 for any result about the job,
including "no recommendation" and bad input, and 1 for a broken environment, when OUT has no result about the job.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FIELDS = ("model_name", "method", "gpu_model", "tokens_per_sample", "batch_size", "model_version")
NO_ANSWER = {"workers": None, "gpus": None, "error": None, "reason": None}


def answer(values: list[str]) -> tuple[dict[str, Any], int]:
    """The answer for the values of the fields, and the exit code."""
    try:
        from autoconf.min_gpu_recommender import min_gpu_recommender

        job: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
        result = min_gpu_recommender(**job, gpus_per_worker=8, max_gpus=128)
    except ValueError as error:  # names the field
        return {**NO_ANSWER, "error": str(error)}, 0
    except Exception as error:  # report any error to the controller, and never as "no recommendation"
        return {**NO_ANSWER, "error": f"{type(error).__name__}: {error}"}, 1
    if not result["can_recommend"]:
        return {**NO_ANSWER, "reason": result["reason"]}, 0
    return {**NO_ANSWER, "workers": result["workers"], "gpus": result["gpus"]}, 0


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the file completely or not at all, because a controller may read it at any time."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(f"{json.dumps(result)}\n", encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2 + len(FIELDS):
        sys.exit(__doc__)
    result, code = answer(sys.argv[2:])
    write(Path(sys.argv[1]), result)
    sys.exit(code)
