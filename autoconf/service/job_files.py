"""Read a job from the texts of its files, answer it, and patch the file that sets the number of GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from autoconf.errors import BadInput
from autoconf.files import only_given
from autoconf.jobs.importers.documents import shortened
from autoconf.jobs.job import Workload
from autoconf.planner.job_files import FromFiles, complete_job, fewest_nodes, patch_job
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.service.queries import explain_job

_OPTION = re.compile(r"--([a-z][a-z-]*)")


def answer_job_texts(content: Mapping[str, Any], models: ModelsFolder = None, *, html: bool = False) -> dict[str, Any]:
    """Read a job from the texts of its files, explain its recommendation, and patch a file with it.

    No file of this machine is opened.

    Args:
        content: ``files``, the text of each file by its name, among which files that others name are searched;
            ``options``, fields of the job that override the files; and ``nodes_only``, whether only the number of
            nodes may change.
        models: Folder of user versions.
        html: Whether the answer has ``html``.

    Returns:
        ``read``: ``job``, its fields, with ``read``, ``assumed``, ``unknown`` and ``belongs_to``, where they come from,
        and ``notes``; ``answer``, as for ``explain``; ``patched``, the ``file``, its new ``text`` and ``notes``, or
        ``None``; and ``not_patched``, why there is none.

    Raises:
        ValueError: A file or a field is invalid, or a required field is missing; the message names it.
        AutoConfError: The installation is broken.
    """
    files, nodes_only = content["files"], content.get("nodes_only", False)
    with only_given(files):
        found = _read(files, content.get("options", {}))
        answer = explain_job(found.fields, models, html=html)
        patched, problem = _patch(files, found, answer, models, nodes_only)
    read = {"job": found.fields, **found.provenance, "notes": [*found.notes]}
    return {"read": read, "answer": answer, "patched": patched, "not_patched": problem}


def _read(files: Mapping[str, str], options: Mapping[str, Any]) -> FromFiles:
    for field in options:
        if field not in Workload.model_fields:
            allowed = ", ".join(Workload.model_fields)
            raise BadInput(f"options.{shortened(field)}: no such field; the fields are {allowed}")
    with _named_as_fields():
        return complete_job([*files], options)


def _patch(
    files: Mapping[str, str], job: FromFiles, answer: Mapping[str, Any], models: ModelsFolder, nodes_only: bool
) -> tuple[dict[str, Any] | None, str]:
    """The patched file, or why there is none."""
    try:
        with _named_as_fields():
            found = _on_whole_nodes(job, models) if nodes_only else answer
            if not found["can_recommend"]:
                return None, f"no recommendation: {found['reason']}"
            patch = patch_job([*files], job, found["gpus"], found["workers"], nodes_only)
    except BadInput as error:
        return None, str(error)
    return {"file": patch.file, "text": patch.text, "notes": [*patch.notes]}, ""


def _on_whole_nodes(job: FromFiles, models: ModelsFolder) -> dict[str, Any]:
    """The fewest nodes with as many GPUs as the files request for each."""
    if job.counted.per_worker is None:
        raise BadInput(f"--nodes-only: the GPUs per node are not certain: {job.counted.problem}")
    return asdict(fewest_nodes(job.fields, job.counted.per_worker, models))


class _named_as_fields:
    """Write the options that an error suggests as the fields of ``options``, which a request has instead."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, BadInput):
            text = str(error).replace("give it by --job", "give it in files")
            raise BadInput(_OPTION.sub(lambda option: option[1].replace("-", "_"), text)) from None
