"""Read a job from the texts of its files, answer it, and patch the file that sets the number of GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autoconf.errors import BadInput
from autoconf.files import only_given
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.job import Workload
from autoconf.planner.job_files import complete_job, patch_job
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.service.queries import explain_job

_OPTION = re.compile(r"--([a-z][a-z-]*)")


def read_job_texts(files: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Read a job from the texts of its files; no file of this machine is opened.

    Args:
        files: The text of each file by its name; files that others name are searched among these.
        options: Fields of the job that override the files.

    Returns:
        ``job``, its fields; ``read``, ``assumed``, ``unknown`` and ``belongs_to``, where they come from; and ``notes``.

    Raises:
        BadInput: A file or a setting cannot be read, or a required field is missing; the message names it.
    """
    for field in options:
        if field not in Workload.model_fields:
            allowed = ", ".join(Workload.model_fields)
            raise BadInput(f"options.{shortened(field)}: no such field; the fields are {allowed}")
    with only_given(files), _named_as_fields():
        found = complete_job([*files], options)
    return {"job": found.fields, **found.provenance, "notes": [*found.notes]}


def answer_job_texts(
    files: Mapping[str, str], options: Mapping[str, Any], models: ModelsFolder = None, *, html: bool = False
) -> dict[str, Any]:
    """Read a job from the texts of its files, explain its recommendation, and patch a file with it.

    Returns:
        ``read``, the result of ``read_job_texts``; ``answer``, as for ``explain``; ``patched``, the ``file``, its new
        ``text`` and ``notes``, or ``None``; and ``not_patched``, why there is none.

    Raises:
        ValueError: A file or a field is invalid; the message names it.
        AutoConfError: The installation is broken.
    """
    read = read_job_texts(files, options)
    with only_given(files):
        answer = explain_job(read["job"], models, html=html)
        patched, problem = _patch(files, read["job"], answer)
    return {"read": read, "answer": answer, "patched": patched, "not_patched": problem}


def _patch(
    files: Mapping[str, str], job: Mapping[str, Any], answer: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The patched file, or why there is none."""
    if not answer["can_recommend"]:
        return None, f"no recommendation: {answer['reason']}"
    try:
        patch = patch_job([*files], job, answer["gpus"], answer["workers"])
    except BadInput as error:
        return None, str(error)
    return {"file": patch.file, "text": patch.text, "notes": [*patch.notes]}, ""


class _named_as_fields:
    """Write the options that an error suggests as the fields of ``options``, which a request has instead."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, BadInput):
            text = str(error).replace("give it by --job", "give it in files")
            raise BadInput(_OPTION.sub(lambda option: option[1].replace("-", "_"), text)) from None
