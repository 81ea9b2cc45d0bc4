"""Read the config files that settings name: next to the file that names them, or written by the same script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autoconf.errors import BadInput
from autoconf.files import is_file
from autoconf.jobs.importers.documents import Document, NotDocuments, load_documents, read_text, shortened
from autoconf.jobs.importers.evidence import dialect_of
from autoconf.jobs.importers.key_table import Place, Setting, job_keys, settings
from autoconf.jobs.importers.words import described, is_unknown

# Keys whose value is another file, and the dialect of that file.
_NAMING = {
    ("accelerate", "config_file"): "accelerate",
    ("arguments", "accelerate_config"): "accelerate",
    ("arguments", "fsdp_config"): "fsdp",
    ("arguments", "config"): "arguments",
    ("axolotl", "config"): "axolotl",
    ("llama-factory", "config"): "llama-factory",
    ("llama-factory", "fsdp_config"): "fsdp",
}
_ANCESTORS = 3  # folders above a script in which a relative path may start


class Sources(NamedTuple):
    """The places where named files are searched.

    Attributes:
        path: The file that names others.
        written: The texts of files that the same script writes.
        others: The settings of the other files of the job, which may include a missing file.
        missing: The options that would describe the job without any file; if empty, a missing file is not an error.
        unread: Collects the settings that name a missing file.
        says_sharding: Whether an option gives the sharding.
    """

    path: str
    written: Mapping[str, str]
    others: Sequence[Setting]
    missing: Sequence[str]
    unread: list[Setting]
    says_sharding: bool = False


def with_named_files(found: Sequence[Setting], sources: Sources) -> list[Setting]:
    """Settings with those of the files that they name; the settings of the naming file have precedence.

    Raises:
        BadInput: A named file is missing, its name is not certain, or it has unexpected settings.
    """
    given = {(setting.dialect, setting.key) for setting in found}
    complete: list[Setting] = []
    for setting in found:
        dialect = _NAMING.get((setting.dialect, setting.key))
        if dialect is None or not isinstance(setting.value, str) or not setting.value:
            complete.append(setting)
            continue
        named = _named(setting, dialect, sources)
        complete += [setting] if named is None else [s for s in named if (s.dialect, s.key) not in given]
    return complete


def _named(setting: Setting, dialect: str, sources: Sources) -> list[Setting] | None:
    """The settings of a named file; ``None`` if the file is part of the trainer."""
    name, missing = setting.value, sources.missing
    if dialect == "accelerate" and not sources.says_sharding:  # the launcher's config decides how GPUs share a model
        missing = [*missing, "--sharding"]
    if is_unknown(name) or "$" in name:
        if any(other.dialect == dialect for other in sources.others):
            return []
        if not missing:
            sources.unread.append(setting)
            return []
        raise BadInput(
            f"{setting.place}: {described(name)}: the name of the file is not certain; "
            f"give it by --job, or give {', '.join(missing)}"
        )
    text, path = _text(name, sources)
    if text is not None:
        return _settings(text, path, dialect, setting)
    key = job_keys().dialects[setting.dialect].find(setting.key)
    if key is not None and name.casefold() in key.values:
        return None
    if any(other.dialect in (dialect, "fsdp") for other in sources.others):
        return []
    if not missing:
        sources.unread.append(setting)
        return []
    raise BadInput(
        f"{setting.place}: {shortened(name)!r}: no such file next to {sources.path}; "
        f"give it by --job, or give {', '.join(missing)}"
    )


def _text(name: str, sources: Sources) -> tuple[str | None, str]:
    for written, text in sources.written.items():
        if Path(written).name == Path(name).name:
            return text, f"{sources.path} ({written})"
    folder = Path(sources.path).parent
    folders = [folder, *list(folder.absolute().parents)[:_ANCESTORS]]
    places = [] if Path(name).is_absolute() else [parent / name for parent in folders]
    for place in [*places, folder / Path(name).name]:
        try:
            if is_file(place):
                return read_text(str(place)), str(place)
        except (OSError, ValueError):  # a name that is too long for a file
            continue
    return None, ""


def _settings(text: str, path: str, dialect: str, setting: Setting) -> list[Setting]:
    try:
        documents = load_documents(text, path)
    except NotDocuments as error:
        raise BadInput(f"{setting.place}: {error}") from None
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise BadInput(f"{setting.place}: {path}: must have settings, keys with values")
    document = documents[0]
    place = places_in(document, path)
    if dialect == "fsdp":
        return [Setting(place(key), "fsdp", key.removeprefix("fsdp_"), value) for key, value in document.value.items()]
    found = dialect if dialect == "axolotl" and "base_model" in document.value else dialect_of(document.value, path)
    if {found, dialect} == {"arguments", "llama-factory"}:  # under a script of unknown origin, or short
        found = dialect = "llama-factory"
    if found != dialect:
        key = next(iter(document.value))
        raise BadInput(
            f"{setting.place}: {shortened(setting.value)!r}: must be {dialect} settings, has {shortened(key)}"
        )
    return list(settings(dialect, document.value, place))


def places_in(document: Document, path: str) -> Callable[[str], Place]:
    """The place of each dotted key of a document."""

    def place(key: str) -> Place:
        parts = key.partition("[")[0].split(".")
        lines = (document.line(*parts[:end]) for end in range(len(parts), 0, -1))
        return Place(path, next((line for line in lines if line is not None), None), key)

    return place
