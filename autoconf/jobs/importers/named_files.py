"""Read the config files that settings name: next to the file that names them, or written by the same script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from autoconf.errors import BadInput
from autoconf.files import is_file
from autoconf.jobs.importers.documents import Document, NotDocuments, load_documents, read_text, shortened
from autoconf.jobs.importers.evidence import dialect_of
from autoconf.jobs.importers.key_table import Place, Setting, job_keys, settings
from autoconf.jobs.importers.other_files import OFF
from autoconf.jobs.importers.torchtune import recipe_settings
from autoconf.jobs.importers.words import described, is_unknown

# Keys whose value is another file, and the dialect of that file.
_NAMING = {
    ("accelerate", "config_file"): "accelerate",
    ("arguments", "accelerate_config"): "accelerate",
    ("arguments", "fsdp_config"): "fsdp",
    ("arguments", "config"): "arguments",
    ("arguments", "deepspeed"): "deepspeed",
    ("arguments", "deepspeed_config"): "deepspeed",
    ("accelerate", "deepspeed_config_file"): "deepspeed",
    ("llama-factory", "deepspeed"): "deepspeed",
    ("axolotl", "deepspeed"): "deepspeed",
    ("axolotl", "config"): "axolotl",
    ("llama-factory", "config"): "llama-factory",
    ("open-instruct", "config"): "open-instruct",
    ("torchtune", "config"): "torchtune",
    ("llama-factory", "fsdp_config"): "fsdp",
    ("ms-swift", "deepspeed"): "deepspeed",
    ("ms-swift", "config"): "ms-swift",
}
BUNDLED_FILES = Path(__file__).with_name("bundled_files.yaml")
_DEEPEST = 3  # files that name files
_ANCESTORS = 3  # folders above a script in which a relative path may start


class _Bundled(BaseModel):
    """A config of DeepSpeed that comes with a trainer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialect: str
    path: str
    source: str
    settings: dict[str, Any]


class Sources(NamedTuple):
    """The places where named files are searched.

    Attributes:
        path: The file that names others.
        written: The texts of files that the same script writes.
        others: The settings of the other files of the job, which may include a missing file.
        missing: The options that would describe the job without any file; if empty, a missing file is not an error.
        unread: Collects the settings that name a missing file.
        says_sharding: Whether an option gives the sharding.
        says_offload: Whether an option gives what is offloaded.
        folders: The folders of the files that name the naming file.
    """

    path: str
    written: Mapping[str, str]
    others: Sequence[Setting]
    missing: Sequence[str]
    unread: list[Setting]
    says_sharding: bool = False
    says_offload: bool = False
    folders: tuple[Path, ...] = ()


def with_named_files(found: Sequence[Setting], sources: Sources) -> list[Setting]:
    """Settings with those of the files that they name; the settings of the naming file have precedence.

    Raises:
        BadInput: A named file is missing, its name is not certain, or it has unexpected settings.
    """
    return _complete(found, sources, _DEEPEST)


def _complete(found: Sequence[Setting], sources: Sources, depth: int) -> list[Setting]:
    given = {(setting.dialect, setting.key) for setting in found}
    complete: list[Setting] = []
    for setting in found:
        dialect = _NAMING.get((setting.dialect, setting.key))
        if dialect is None or depth == 0 or not _is_name(setting):
            complete.append(setting)
            continue
        named, path = _named(setting, dialect, sources)
        if named is None:
            complete.append(setting)
            continue
        rest = [s for s in named if (s.dialect, s.key) not in given]
        complete += _complete(rest, sources._replace(folders=(*sources.folders, Path(path).parent)), depth - 1)
    return complete


def _is_name(setting: Setting) -> bool:
    return isinstance(setting.value, str) and setting.value.casefold() not in OFF and setting.value != "auto"


def _named(setting: Setting, dialect: str, sources: Sources) -> tuple[list[Setting] | None, str]:
    """The settings of a named file, and its path; ``None`` if the file is part of the trainer."""
    name = setting.value
    known = job_keys().dialects[setting.dialect].find(setting.key)
    is_certain = not is_unknown(name) and "$" not in name
    if is_certain:
        text, path = _text(name, sources)
        if text is not None:
            return _settings(text, path, dialect, setting), path
        if known is not None and name.casefold() in known.values:
            return None, ""
        if bundled := _bundled(setting):
            return bundled, ""
    alike = (dialect, "fsdp") if is_certain and dialect == "accelerate" else (dialect,)
    if any(other.dialect in alike for other in sources.others):
        return [], ""
    missing = _missing(dialect, sources, name)
    if not missing:
        sources.unread.append(setting)
        return [], ""
    problem = (
        f"{shortened(name)!r}: no such file next to {sources.path}"
        if is_certain
        else f"{described(name)}: the name of the file is not certain"
    )
    raise BadInput(f"{setting.place}: {problem}; give it by --job, or give {', '.join(missing)}")


def _missing(dialect: str, sources: Sources, name: str) -> list[str]:
    """The options that replace a file; what it offloads is asked for if its name says that it does."""
    of_launcher = [] if sources.says_sharding else ["--sharding"]  # it decides how GPUs share a model
    if dialect == "deepspeed":
        offloads = "offload" in name.casefold() and "no_offload" not in name.casefold()
        return [*of_launcher, *(["--offload"] if offloads and not sources.says_offload else [])]
    return [*sources.missing, *(of_launcher if dialect == "accelerate" else ())]


def _bundled(setting: Setting) -> list[Setting]:
    """The settings of a file that comes with the trainer, as its pinned release has it."""
    alike = (f for f in _bundled_files() if f.dialect == setting.dialect and f"/{setting.value}".endswith(f"/{f.path}"))
    file = next(alike, None)
    if file is None:
        return []
    named = f"{setting.place.key} (as in {file.source}): "
    return list(settings("deepspeed", file.settings, lambda key: setting.place._replace(key=named + key)))


@cache
def _bundled_files() -> tuple[_Bundled, ...]:
    import yaml

    table = yaml.safe_load(BUNDLED_FILES.read_text(encoding="utf-8"))
    return tuple(_Bundled.model_validate(file) for file in table)


def _text(name: str, sources: Sources) -> tuple[str | None, str]:
    for written, text in sources.written.items():
        if Path(written).name == Path(name).name:
            return text, f"{sources.path} ({written})"
    folder = Path(sources.path).parent
    folders = [folder, *list(folder.absolute().parents)[:_ANCESTORS], *sources.folders]
    places = [] if Path(name).is_absolute() else [parent / name for parent in folders]
    for place in [*places, *(each / Path(name).name for each in (folder, *sources.folders))]:
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
        if is_unknown(text):
            raise BadInput(f"{setting.place}: what is in {described(text)} is not certain; give the file by --job")
        raise BadInput(f"{setting.place}: {path}: must have settings, keys with values")
    document = documents[0]
    place = places_in(document, path)
    if dialect == "fsdp":
        return [Setting(place(key), "fsdp", key.removeprefix("fsdp_"), value) for key, value in document.value.items()]
    found = dialect if dialect == "axolotl" and "base_model" in document.value else dialect_of(document.value, path)
    if {found, dialect} == {"arguments", "llama-factory"}:  # under a script of unknown origin, or short
        found = dialect = "llama-factory"
    elif (found, dialect) == ("peft-sft", "arguments"):
        dialect = found
    elif (found, dialect) in (("arguments", "open-instruct"), ("arguments", "ms-swift")):  # short
        found = dialect
    if found != dialect:
        key = next(iter(document.value))
        raise BadInput(
            f"{setting.place}: {shortened(setting.value)!r}: must be {dialect} settings, has {shortened(key)}"
        )
    return list(
        recipe_settings(document.value, place) if dialect == "torchtune" else settings(dialect, document.value, place)
    )


def places_in(document: Document, path: str) -> Callable[[str], Place]:
    """The place of each dotted key of a document."""

    def place(key: str) -> Place:
        parts = key.partition("[")[0].split(".")
        lines = (document.line(*parts[:end]) for end in range(len(parts), 0, -1))
        return Place(path, next((line for line in lines if line is not None), None), key)

    return place
