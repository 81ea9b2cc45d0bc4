"""Models that no version has: traced from their config when a query first names them, and kept in the user's cache.

The trace is that of ``ado-autoconf trace``. It runs in a process of its own, because the libraries for tracing change
the process that imports them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from autoconf.errors import AutoConfError, BadInput
from autoconf.files import reason
from autoconf.jobs.model_config import memory_settings, missing_size, read_config
from autoconf.memory.store import ModelsTable, metadata
from autoconf.predictor.build_extra import check_build_extra
from autoconf.predictor.cards import Model
from autoconf.predictor.predictor import Predictor, memory_of

_PACKAGE = Path(__file__).parents[1]
_TRACER = ("pipeline/catalog.py", "pipeline/tracing/*.py", "pipeline/kernels/*.py")  # what decides a trace
_ARCHITECTURE = "architecture"  # key of the metadata of a trace
_LONGEST = 1_800  # seconds; a trace takes one or two minutes on an idle machine

Report = Callable[[str], None]


class TracedModel(NamedTuple):
    """The predictor of a version for one traced model, and a note about that model."""

    predictor: Predictor
    note: str


def traced_model(predictor: Predictor, written: str, file: Path, report: Report | None = None) -> TracedModel:
    """The predictor of a version for the model of a config, traced if no earlier query did so.

    Args:
        predictor: a version since 2.0.0.
        written: the model's name in jobs: the path as the user wrote it.
        file: the ``config.json``.
        report: the function that is told how far the trace is; by default standard error.

    Raises:
        BadInput: the model cannot be traced, or the extra [build] is missing; the message names the file.
        AutoConfError: the cache cannot be used, or the tracing process ends unexpectedly.
    """
    trace = _trace_of(file, report or _tell)
    state = trace.stat()
    return _opened(predictor, written, trace, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _opened(predictor: Predictor, written: str, trace: Path, *_: int) -> TracedModel:
    try:
        about = json.loads(metadata(trace, _ARCHITECTURE) or "")
        table = ModelsTable.read(trace)
        (name,) = table.models
        model = Model(aliases=[written], max_tokens_per_sample=about["learned_positions"], config=dict(about["config"]))
        parameters, targets = int(about["parameters"]), ", ".join(about["lora_targets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AutoConfError(f"cannot read the trace {trace}: {error}; remove it, and ask again") from None
    memory = memory_of(predictor.card, table)
    note = (
        f"model_name {written!r} is not a model of version {predictor.card.version}: it was traced from its config as "
        f"a {about['family']} model of {parameters:,} parameters, with default adapters on {targets}"
    )
    return TracedModel(predictor.about({name: model}, memory), note)


def _trace_of(file: Path, report: Report) -> Path:
    """The trace of the model of a config, made if it is not in the cache."""
    import filelock
    import platformdirs

    config = read_config(file)
    if missing := missing_size(config):  # a trace of the type's default would be one of another model
        raise BadInput(f"{file}: {missing}: is missing")
    key = fingerprint(config)
    folder = platformdirs.user_cache_path("ado-autoconf") / "models"
    trace = folder / f"{key}.traces.parquet"
    if trace.exists():
        return trace
    check_build_extra(f"{file}: tracing a model that no version has")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{key}.lock"):  # another process may trace the same model
            if not trace.exists():
                report(f"tracing {file}, which takes a minute or two; the trace is kept in {folder}")
                _run(file, f"{_word(config['model_type'])}-{key[:8]}", trace, report)
    except OSError as error:
        raise AutoConfError(f"cannot keep the trace of {file} in {folder}: {reason(error)}") from None
    return trace


def _run(file: Path, name: str, trace: Path, report: Report) -> None:
    """Trace a model in another process."""
    command = [sys.executable, "-m", "autoconf.pipeline.tracing.one_config", str(file.absolute()), name, str(trace)]
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        ) as process:
            assert process.stdout is not None
            alarm = threading.Timer(_LONGEST, process.kill)
            alarm.start()
            try:
                for last in map(json.loads, process.stdout):
                    if "of" in last and last["done"] % max(last["of"] // 10, 1) == 0:
                        report(f"tracing {file}: {last['done']} of {last['of']} settings")
            finally:
                alarm.cancel()
                process.kill()  # it has ended, unless this process was interrupted
        if problem := last.get("problem"):
            raise BadInput(str(problem).replace(str(file.absolute()), str(file)))
        if not trace.exists():
            errors.seek(0)
            said = errors.read().strip().splitlines()[-1:] or [f"it ended with code {process.returncode}"]
            raise AutoConfError(f"{file}: the process that traces it failed: {said[0][:300]}")


def fingerprint(config: dict[str, Any]) -> str:
    """The digest of what decides a trace: the settings that decide memory, and the code that traces."""
    return hashlib.sha256(json.dumps([_tracer(), memory_settings(config)], sort_keys=True).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _tracer() -> str:
    files = sorted(file for pattern in _TRACER for file in _PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _word(model_type: Any) -> str:
    """The type of a model as part of a name."""
    return re.sub(r"[^a-z0-9]+", "-", str(model_type).lower())[:40].strip("-") or "model"


def _tell(message: str) -> None:
    print(f"autoconf: {message}", file=sys.stderr, flush=True)
