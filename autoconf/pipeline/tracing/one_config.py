"""Trace the model of one config in a process of its own: ``python -m autoconf.pipeline.tracing.one_config``.

Queries about a model that no version has start it. The lines that it prints are JSON: how many of all settings are
traced, and at the end the problem, if there is one.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from autoconf.errors import BadInput
from autoconf.files import atomic_file


def main(config: str, name: str, output: str) -> None:
    """Write the trace of a model.

    Args:
        config: path of the ``config.json``.
        name: name of the model in the trace.
        output: path of the trace.
    """
    lines = sys.stdout
    with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):  # libraries print, and warn
        try:
            _trace(config, name, output, lines)
        except BadInput as error:
            _tell(lines, problem=str(error))


def _trace(config: str, name: str, output: str, lines: TextIO) -> None:
    try:
        from autoconf.pipeline.tracing import hf_config, trace_file
    except Exception as error:  # a broken library can raise any exception at import
        raise BadInput(f"a library of the extra [build] does not import: {type(error).__name__}: {error}") from None

    def watched(ways: list[Any]) -> Iterator[Any]:
        for done, way in enumerate(ways):
            _tell(lines, done=done, of=len(ways))
            yield way

    architecture = hf_config.own_architecture(config, name)
    figures = hf_config.own_figures(architecture, watched)
    with atomic_file(Path(output)) as stream:
        trace_file.write_trace(architecture, figures, stream)


def _tell(lines: TextIO, **found: Any) -> None:
    print(json.dumps(found), file=lines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
