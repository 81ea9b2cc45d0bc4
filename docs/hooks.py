"""MkDocs hooks that generate tables from the code, and add the repository's files that pages link to.

A line ``<!-- generated: NAME -->`` of a page becomes the table of that name when the site is built. Links that leave
``docs/`` lead to a page of the site, or to a copy of the file, so that a link works in the repository and on the site.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Documents of the repository that are also pages of the site.
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "sweep/README.md": "guides/ado-sweep.md",
    "examples/controller/README.md": "guides/controller.md",
    "examples/webhook/README.md": "guides/webhook.md",
    "autoconf/AutoGluonModels/README.md": "versions/index.md",
    "autoconf/AutoGluonModels/changelog.md": "versions/changelog.md",
}
COPIES = "repository"  # the site's folder for the repository's files
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)([^)\s]*)(?=\))")
_GENERATED = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(rows: list[dict[str, Any]]) -> str:
    from autoconf.pipeline.report import markdown

    return markdown([{key: str(value).replace("|", r"\|") for key, value in row.items()} for row in rows])


def _code(value: Any) -> str:
    return "" if value in (None, "") else f"`{value}`"


def inputs() -> str:
    """The fields of a job."""
    from autoconf.cli.spellings import names
    from autoconf.jobs.job import OPTIONAL, REQUIRED, Workload

    rows = []
    for field, info in Workload.model_fields.items():
        default = _code(OPTIONAL.get(field)) or ("from the stack" if field not in ("model_version",) else "the newest")
        if field in REQUIRED:
            default = "required"
        elif field in ("batch_size", "per_device_train_batch_size"):
            default = "one of the two"
        elif field == "gpu_memory_gib":
            default = "that of the type"
        elif field == "host_memory_limit_gib":
            default = "any"
        others = " ".join(map(_code, names(field)[1:]))
        rows.append({"input": _code(field), "default": default, "meaning": info.description, "other options": others})
    return _table(rows)


def experiments() -> str:
    """The ado experiments, with their properties, outputs and examples."""
    import yaml

    import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed

    from ado.modules.actuators.registry import ActuatorRegistry
    from ado.schema.reference import ExperimentReference

    registry = ActuatorRegistry()

    names = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = names.split('[project.entry-points."ado.custom_experiments"]')[1].split("\n\n")[0]
    parts = []
    for name in re.findall(r"^(\w+) = ", section, re.MULTILINE):
        declared = registry.experimentForReference(
            ExperimentReference(actuatorIdentifier="custom_experiments", experimentIdentifier=name)
        )
        examples = [
            path
            for path in sorted((ROOT / "examples").glob("*.yaml"))
            if f"experimentIdentifier: {name}\n" in path.read_text(encoding="utf-8") and "my-job" not in path.name
        ]
        required = [_code(prop.identifier) for prop in declared.requiredProperties]
        optional = [_code(prop.identifier) for prop in declared.optionalProperties]
        outputs = [_code(prop.identifier) for prop in declared.targetProperties]
        entity = yaml.safe_load(examples[0].read_text(encoding="utf-8"))["entity"]
        parts.append(
            f"## {name}\n\n{declared.metadata['description']}\n\n"
            + _table(
                [
                    {"": "required", "properties": ", ".join(required)},
                    {"": "optional", "properties": ", ".join(optional)},
                    {"": "outputs", "properties": ", ".join(outputs)},
                ]
            )
            + f"\n\n```bash\nrun_experiment {examples[0].relative_to(ROOT)}\n```\n\n"
            + f"```yaml\n{yaml.safe_dump({'entity': entity}, sort_keys=False)}```"
        )
    return "\n\n".join(parts)


def stacks() -> str:
    """The presets, with the source of each setting."""
    from autoconf.jobs.presets import presets

    parts = []
    for name, preset in presets().items():
        rows = [
            {"setting": _code(setting), "when": "", "value": _code(stated.value), "source": stated.source}
            for setting, stated in preset.settings.items()
        ]
        for case in preset.cases:
            when = ", ".join(f"`{key}` `{value}`" for key, value in case.when.items())
            rows += [
                {"setting": _code(setting), "when": when, "value": _code(stated.value), "source": stated.source}
                for setting, stated in case.settings.items()
            ]
        parts.append(f"## {name}\n\n{preset.description.capitalize()}.\n\n{_table(rows)}")
    return "\n\n".join(parts)


def job_keys() -> str:
    """The keys of other projects' files, with their meaning."""
    from autoconf.jobs.importers.key_table import job_keys

    parts = []
    for name, dialect in job_keys().dialects.items():
        rows = []
        for key, meaning in dialect.keys.items():
            values = [f"`{value}`" for value in meaning.values]
            sets = sorted(meaning.facts())
            rows.append(
                {
                    "key": _code(key),
                    "sets": ", ".join(map(_code, sets)),
                    "values": "any" if meaning.field else ", ".join(values),
                    "other values": "" if meaning.field else f"refused: {meaning.because}",
                }
            )
        ignored = ", ".join(_code(pattern) for pattern in dialect.ignored)
        parts.append(
            f"## {name}\n\nSource: {dialect.source}\n\n{_table(rows)}"
            + (f"\n\nKeys that change no memory: {ignored}." if ignored else "")
        )
    return "\n\n".join(parts)


def other_files() -> str:
    """Files of other tools, which are refused by name."""
    import yaml

    import autoconf.jobs.importers

    file = Path(autoconf.jobs.importers.__file__).with_name("other_files.yaml")
    tools = yaml.safe_load(file.read_text(encoding="utf-8"))["tools"]
    rows = [
        {"file": tool, "keys": " or ".join(" with ".join(map(_code, keys)) for keys in several)}
        for tool, several in tools.items()
    ]
    return _table(rows)


def command() -> str:
    """Every command with its options, from typer's documentation of an app."""
    words = [sys.executable, "-m", "typer", "autoconf.cli.main", "utils", "docs", "--name", "ado-autoconf"]
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    text = html.unescape(done.stdout).split("\n", 1)[1]  # the page has its own title
    return re.sub(r"(?:^\$ ado-autoconf (?!\[|recommend \[).*\n\n?)+", _as_code, text, flags=re.MULTILINE)


def _as_code(match: re.Match[str]) -> str:
    lines = [line for line in match[0].splitlines() if line.strip()]
    if any("[OPTIONS]" in line for line in lines):  # already in a block
        return match[0]
    return "\n".join(["```console", *lines, "```", "", ""])


def errors() -> str:
    """The exceptions and warnings of the package."""
    import autoconf.errors

    kinds = [kind for kind in vars(autoconf.errors).values() if isinstance(kind, type)]
    rows = [
        {"class": _code(kind.__name__), "is a": _code(kind.__bases__[0].__name__), "raised when": (kind.__doc__ or "")}
        for kind in kinds
        if kind.__module__ == "autoconf.errors"
    ]
    return _table([{**row, "raised when": " ".join(row["raised when"].split())} for row in rows])


TABLES: dict[str, Callable[[], str]] = {
    "inputs": inputs,
    "experiments": experiments,
    "stacks": stacks,
    "job-keys": job_keys,
    "other-files": other_files,
    "cli": command,
    "errors": errors,
}


# --- links ------------------------------------------------------------------------------------------------------------


def _origin(page: str) -> str:
    """The file in the repository that a page of the site is made from."""
    return next((source for source, target in PAGES.items() if target == page), f"docs/{page}")


def _target(link: str, page: str) -> str | None:
    """The target of a relative link of a page on the site; ``None`` if the link needs no change."""
    if re.match(r"[a-z]+:|/", link):
        return None
    path = normpath(join(dirname(_origin(page)), link))
    if path in PAGES:
        target = PAGES[path]
    elif path.startswith("docs/"):
        target = path.removeprefix("docs/")
    elif (ROOT / path).is_dir():
        return None
    else:
        target = f"{COPIES}/{path}"
    return relpath(target, dirname(page) or ".")


def on_files(files: Any, config: Any) -> Any:
    """Add documents of the repository as pages, and files that pages link to as copies."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in [file for file in files if file.is_documentation_page()]:
        origin = _origin(file.src_uri)
        for link, _ in _LINK.findall((ROOT / origin).read_text(encoding="utf-8")):
            target = _target(link, file.src_uri)
            path = normpath(join(dirname(file.src_uri), target)) if target else ""
            if path.startswith(f"{COPIES}/") and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path.removeprefix(f"{COPIES}/"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Insert tables, and adjust links to the site."""
    markdown = _LINK.sub(lambda link: (_target(link[1], page.file.src_uri) or link[1]) + link[2], markdown)
    return _GENERATED.sub(lambda block: TABLES[block[1]](), markdown)
