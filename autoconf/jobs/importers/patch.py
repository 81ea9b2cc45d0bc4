"""Change the GPU counts of a manifest or an accelerate config, and nothing else in its text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from autoconf.errors import BadInput
from autoconf.jobs.importers.called_scripts import at_line
from autoconf.jobs.importers.documents import (
    Document,
    NotDocuments,
    Path,
    child,
    decode,
    load_documents,
    read_bytes,
    shortened,
)
from autoconf.jobs.importers.gpu_counts import Layout, Plan, leaves, other_counts, place, script_count
from autoconf.jobs.importers.gpus_of_job import Object, counted
from autoconf.jobs.importers.manifest_counts import NODE_COUNTS, plan_manifest
from autoconf.jobs.importers.other_files import PYTHON, text_kind
from autoconf.jobs.importers.pods import KINDS
from autoconf.jobs.importers.python_patch import patch_code
from autoconf.jobs.importers.schedulers import NODES
from autoconf.jobs.importers.script_patch import patch_script
from autoconf.jobs.importers.skypilot import is_task
from autoconf.jobs.importers.skypilot_patch import plan_task

__all__ = ["Layout", "Patched", "patch_files", "patched"]


class Patched(NamedTuple):
    """A file with other GPU counts.

    Attributes:
        file: Its name.
        text: Its text, in which only the counts differ.
        gpus_before: The GPUs that the counts gave before, over all workers.
        notes: What the new counts need besides this file.
    """

    file: str
    text: str
    gpus_before: int
    notes: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The text in UTF-8."""
        return self.text.encode()


class _File(NamedTuple):
    name: str
    text: str
    documents: list[Document]  # none of a shell script


class OtherCounts(BadInput):
    """Other counts than those of nodes would have to change."""


class NoCounts(BadInput):
    """No file counts GPUs."""


def patch_files(paths: Sequence[str], layout: Layout, nodes_only: bool = False) -> Patched:
    """Read files and change the counts of one; a byte order mark stays.

    Raises:
        BadInput: As ``patched``, or a file cannot be read.
    """
    if chosen := next((path for path in paths if at_line(path)[1] is not None), None):
        raise BadInput(f"{chosen}: a script with several trainings is not patched; keep this one in a file of its own")
    contents = {path: read_bytes(path) for path in paths}
    patch = patched([(path, decode(data, path)) for path, data in contents.items()], layout, nodes_only)
    mark = "\ufeff" if contents[patch.file].startswith(codecs.BOM_UTF8) else ""
    return patch._replace(text=mark + patch.text)


def patched(texts: Sequence[tuple[str, str]], layout: Layout, nodes_only: bool = False) -> Patched:
    """Change the counts of the one file that counts GPUs.

    The new text is parsed again. It is returned only if nothing but the counts differs.

    Args:
        texts: Names and texts of the files of one job. A manifest takes precedence over accelerate configs.
        layout: The counts.
        nodes_only: Whether only counts of nodes of a manifest may change.

    Raises:
        OtherCounts: With ``nodes_only``, another count would have to change.
        BadInput: No file counts GPUs, or several do, or a count cannot be changed alone; the message says why.

    >>> print(patched([("a.yaml", "num_processes: 8  # all\\nnum_machines: 1\\n")], Layout(4, 2)).text, end="")
    num_processes: 8  # all
    num_machines: 2
    """
    files = [_File(name, text, _documents(text, name)) for name, text in texts]
    found = [(file, (i,)) for file in files for i, d in enumerate(file.documents) if _is_job(d)]
    is_manifest = bool(found)
    if not is_manifest:
        found = [(file, (i,)) for file in files for i, d in enumerate(file.documents) if _is_config(d)]
    codes = [file for file in files if not file.documents and text_kind(file.text, file.name) == PYTHON]
    if len(codes) == 1 and not found:
        return _patched_code(files, codes[0], layout, nodes_only)
    scripts = [file for file in files if _counts_in_script(file)]
    if len(scripts) == 1 and not found:
        if nodes_only:
            raise BadInput(f"{scripts[0].name}: --nodes-only changes the manifest of a Kubernetes job")
        return _patched_script(files, scripts[0], layout)
    _check_scripts(scripts)
    if len(found) != 1:
        raise (BadInput if found else NoCounts)(
            f"--patch: one file must be a {', '.join(KINDS)}, a task of SkyPilot, an accelerate config with "
            "num_processes, or a script that counts GPUs; "
            f"{len(found)} of {', '.join(file.name for file in files)} are"
        )
    file, path = found[0]
    objects = [Object(each.name, document) for each in files for document in each.documents]
    reserved = counted([], [], objects)
    plan = Plan(file.name, file.documents, layout, (reserved.per_worker, reserved.workers))
    if is_manifest and _kind(file.documents[path[0]]) is None:
        plan_task(plan, path)
    elif is_manifest:
        plan_manifest(plan, path)
    else:
        plan.accelerate_config(path)
    if nodes_only:
        _check_nodes_only(plan)
    _check_others(files, file, path, plan)
    return Patched(file.name, _verified(file, plan), plan.gpus_before, tuple(plan.notes))


def _documents(text: str, name: str) -> list[Document]:
    try:
        return load_documents(text, name)
    except NotDocuments:  # a command line
        return []


def _kind(document: Document) -> str | None:
    kind = document.value.get("kind") if isinstance(document.value, dict) else None
    return kind if isinstance(kind, str) else None


def _is_job(document: Document) -> bool:
    return _kind(document) in KINDS or (isinstance(document.value, dict) and is_task(document.value))


def _is_config(document: Document) -> bool:
    return isinstance(document.value, dict) and "num_processes" in document.value and "kind" not in document.value


def _check_nodes_only(plan: Plan) -> None:
    for path, new in plan.changes.items():
        if path[-1] not in NODE_COUNTS and new != plan.get(path):
            change = _change(str(plan.get(path)), str(new))
            raise OtherCounts(f"{plan.where(path)}: {change}; --nodes-only changes only counts of nodes")


def _change(old: str, new: str) -> str:
    """What would have to become what: of a command the first word that differs, with the one before it."""
    words = list(zip(["", *old.split()], old.split(), new.split(), strict=False))
    before, was, becomes = next((each for each in words if each[1] != each[2]), ("", old, new))
    option = f"{before} " if before.startswith("-") else ""
    return f"{shortened(option + was)} would have to become {shortened(option + becomes)}"


def _counts_in_script(file: _File) -> tuple[int, str] | None:
    """The line and the word with which a script counts GPUs; ``None`` for other files."""
    text_alone = not any(isinstance(document.value, dict | list) for document in file.documents)
    return script_count(file.text) if text_alone else None


def _patched_script(files: Sequence[_File], script: _File, layout: Layout) -> Patched:
    """Change the counts of a script, if no other file counts GPUs."""
    for file in files:
        for path, name in other_counts(file.documents) if file is not script else ():
            where = place(file.name, file.documents, path)
            raise BadInput(f"{where}: {name} counts GPUs as well, and --patch changes one place only")
    patch = patch_script(script.text, script.name, layout)
    return Patched(script.name, patch.text, patch.gpus_before)


def _patched_code(files: Sequence[_File], code: _File, layout: Layout, nodes_only: bool) -> Patched:
    """Change the counts of a Python script, if no other file counts GPUs."""
    text, before, changed = patch_code(code.text, code.name, layout)
    if nodes_only and (others := [what for what in changed if what != NODES]):
        raise OtherCounts(f"{code.name}: {others[0]} would have to change; --nodes-only changes only counts of nodes")
    for file in files:
        for path, name in other_counts(file.documents):
            where = place(file.name, file.documents, path)
            raise BadInput(f"{where}: {name} counts GPUs as well, and --patch changes one place only")
    return Patched(code.name, text, before)


def _check_scripts(scripts: Sequence[_File]) -> None:
    for file in scripts:
        line, word = _counts_in_script(file) or (1, "")
        raise BadInput(
            f"{file.name}:{line}: {shortened(word)} counts GPUs in a script, and another file counts them, too; take "
            "it out, so that one file gives the count"
        )


def _check_others(files: Sequence[_File], target: _File, target_path: Path, plan: Plan) -> None:
    """Refuse where a document that is not changed counts GPUs, too."""
    for file in files:
        for path, name in other_counts(file.documents):
            overridden = plan.counts_processes and file is not target and name in ("num_processes", "num_machines")
            if (file is not target or path[:1] != target_path) and not overridden:
                where = place(file.name, file.documents, path)
                raise BadInput(f"{where}: {name} counts GPUs as well, and --patch changes one place only")


def _verified(file: _File, plan: Plan) -> str:
    """The changed text, if nothing else changes with it: an anchor's value is also that of its aliases."""
    wanted = dict(leaves([document.value for document in file.documents])) | plan.changes
    problem = ""
    for write_aliases in (False, True):
        text = _edited(file, plan, write_aliases)
        try:
            after = dict(leaves([document.value for document in load_documents(text, file.name)]))
        except BadInput as error:
            problem = f"the changed text cannot be read: {error}"
            continue
        wrong = [path for path in {**wanted, **after} if _differ(wanted, after, path)]
        if not wrong:
            return text
        fate = "would not change" if wrong[0] in plan.changes else "would change with the counts"
        problem = f"{place(file.name, file.documents, wrong[0])} {fate}"
    raise BadInput(f"{problem}; --patch needs each count written out, without anchors, aliases and <<")


def _differ(wanted: dict[Path, Any], after: dict[Path, Any], path: Path) -> bool:
    pair = [(type(values[path]), repr(values[path])) if path in values else None for values in (wanted, after)]
    return pair[0] != pair[1]  # by repr, for NaN equals nothing


def _edited(file: _File, plan: Plan, write_aliases: bool) -> str:
    """The text with each change at its place; an alias is left, or replaced by a value of its own."""
    edits: dict[int, tuple[int, str]] = {}
    for path, new in plan.changes.items():
        node = child(file.documents[int(path[0])].node, *path[1:])
        if node is None:
            plan.refuse(path, "its place in the text cannot be told")
        start, end = node.start_mark.index, node.end_mark.index
        raw = file.text[start:end]
        if not raw.startswith("*"):
            replacement = _rewritten(raw, node, new, plan, path)
        elif write_aliases:
            replacement = f'"{new}"' if isinstance(new, str) else str(new)
        else:
            continue
        if edits.setdefault(start, (end, replacement)) != (end, replacement):
            plan.refuse(path, "shares its value with another count by an alias or <<; write it out")
    text = file.text
    for start, (end, replacement) in sorted(edits.items(), reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _rewritten(raw: str, node: yaml.Node, new: int | str, plan: Plan, path: Path) -> str:
    """The text of one value, with quotes, tags and anchors as they were."""
    if path[-1] in ("run", "accelerators"):
        return _with_lines(raw, node.value, str(new))
    if path[-1] != "gpu_ids" and not node.value.isdecimal():
        return plan.new_text(raw, path)
    head, old, tail = raw.rpartition(node.value)
    if path[-1] == "gpu_ids" and not tail and old:
        return f"{head}'{new}'"  # else one id would be a number, which accelerate does not take
    return f"{head}{new}{tail}"


def _with_lines(raw: str, old: str, new: str) -> str:
    """The text of a value with other lines, each at its indentation; the number of lines is the same."""
    start = 0
    for before, after in zip(old.splitlines(), new.splitlines(), strict=True):
        at = raw.find(before, start)
        if at < 0:  # written in another way, which is refused since the value does not change
            return raw
        raw = raw[:at] + after + raw[at + len(before) :]
        start = at + len(after)
    return raw
