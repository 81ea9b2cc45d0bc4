"""Read and write memory profiles: moments as Parquet, everything else as JSON.

The format is frozen since version 2.0.0. The key of a profile is a text of space-separated fields, 7 of a ``LayerWay``
or 4 of a ``HeadWay``. Some names on disk differ from the names in the code; see ``_COLUMNS`` and ``_ABSMAX``.

The moments of a folder may continue those of another one, its base: its Parquet file has only the moments that the base
lacks, and names the file of the base, with the models in it, in its metadata.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from autoconf.memory.adapted import AdaptedModules, modules_of_released
from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile, StackMoment, Trainable, Units
from autoconf.memory.units import Floats

_Way = TypeVar("_Way", LayerWay, HeadWay)
MOMENTS, MODELS = "moments.parquet", "models.json"

# The columns of ``StackMoment`` on disk.
_COLUMNS = (*StackMoment._fields[:5], "own", "newborn", "done", "rest")
_ABSMAX = "maxima_bytes"  # ``Units.absmax_bytes`` on disk
_ADAPTED = "modules"  # linear layers that can have adapters; absent from version 3.0.0 and before
_BASE, _MODELS_OF_BASE = "base", "models of base"  # keys of the metadata of moments that continue those of a base


def _text(key: Iterable[object]) -> str:
    return " ".join(map(str, key))


def _way(text: str) -> LayerWay | HeadWay:
    words = text.split(" ")
    values: list[Any] = [{"True": True, "False": False}.get(word, word) for word in words]
    return LayerWay(*values) if len(words) == len(LayerWay._fields) else HeadWay(*values)


def write_models(models: Iterable[ModelProfile], folder: Path, base: Path | None = None) -> None:
    """Write the profiles of models: moments as Parquet, one row group per model, everything else as JSON.

    Args:
        models: the profiles.
        folder: the folder to write to.
        base: a folder next to it whose moments are not written again.

    Raises:
        ValueError: a model has other moments in the base, or has no moments that the base lacks.
    """
    models = list(models)
    with (folder / MOMENTS).open("wb") as stream:
        if base is None:
            _write_moments(models, stream)
        else:
            known = ModelsTable.read(base)
            about = {_BASE: f"{base.name}/{MOMENTS}", _MODELS_OF_BASE: json.dumps(known.models)}
            _write_moments([_beyond(known, model) for model in models], stream, about)
    (folder / MODELS).write_text(_others(models).replace('"},"', '"},\n"') + "\n", encoding="utf-8")


def _beyond(known: ModelsTable, model: ModelProfile) -> ModelProfile:
    """A profile without the moments that a table has."""
    if model.model_name not in known.models:
        return model
    there = known.figures(model.model_name)
    layers = {way: rows for way, rows in model.layers.items() if way not in there.layers}
    heads = {way: rows for way, rows in model.heads.items() if way not in there.heads}
    if not (layers or heads) or not _has(model.layers, there.layers) or not _has(model.heads, there.heads):
        raise ValueError(f"{model.model_name}: has other moments than its base, or no more")
    return replace(model, layers=layers, heads=heads)


def _has(moments: Mapping[_Way, Floats], others: Mapping[_Way, Floats]) -> bool:
    """Whether moments contain others, as the file rounds them."""
    return all(way in moments and np.array_equal(np.float32(moments[way]), rows) for way, rows in others.items())


def write_model(model: ModelProfile, stream: BinaryIO, about: Mapping[str, str]) -> None:
    """Write the profile of one model as one Parquet file, with everything except the moments in its metadata.

    Args:
        model: its profile.
        stream: the file to write to.
        about: more metadata, which ``metadata`` reads.
    """
    _write_moments([model], stream, {MODELS: _others([model]), **about})


def metadata(path: Path, key: str) -> str | None:
    """Read a value of the metadata of ``write_model``; ``None`` if there is no such key.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not Parquet.
    """
    found = (pq.read_schema(path).metadata or {}).get(key.encode())
    return None if found is None else str(found, "utf-8")


def _others(models: Iterable[ModelProfile]) -> str:
    others = {
        model.model_name: {
            "made_of": model.made_of,
            "units": {_text(key): _trainable_to_json(trainable) for key, trainable in model.units.items()},
            "problems": {_text(key): sentence for key, sentence in model.problems.items()},
            **({_ADAPTED: model.modules.to_json()} if model.modules else {}),
        }
        for model in models
    }
    return json.dumps(others, separators=(",", ":"))


def _trainable_to_json(trainable: Trainable) -> dict[str, Any]:
    units = {_ABSMAX if name == "absmax_bytes" else name: value for name, value in asdict(trainable.units).items()}
    return {"units": units, "shapes": [[*shape, count] for shape, count in trainable.shapes]}


def _trainable_from_json(found: Mapping[str, Any]) -> Trainable:
    units = {"absmax_bytes" if name == _ABSMAX else name: value for name, value in found["units"].items()}
    shapes = [(Shape(tuple(dims), itemsize, embedding), count) for dims, itemsize, embedding, count in found["shapes"]]
    return Trainable(Units(**units), tuple(shapes))


def _write_moments(models: Iterable[ModelProfile], stream: BinaryIO, about: Mapping[str, str] | None = None) -> None:
    tables = [_moments_table(dict(itertools.chain(model.layers.items(), model.heads.items()))) for model in models]
    with pq.ParquetWriter(
        stream,
        tables[0].schema.with_metadata(about),
        compression="zstd",
        compression_level=15,
        use_dictionary=["way", "point", *_COLUMNS[5:]],
        column_encoding=dict.fromkeys(_COLUMNS[1:5], "BYTE_STREAM_SPLIT"),
    ) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(about), row_group_size=len(table))


def _moments_table(moments: Mapping[Any, Floats]) -> pa.Table:
    ways = [_text(way) for way, rows in moments.items() for _ in range(len(rows))]
    values = np.concatenate(list(moments.values()))
    seven_digits = values.astype(np.float32)
    columns = {name: pa.array(seven_digits[:, i]) for i, name in enumerate(_COLUMNS)}
    return pa.table({"way": ways, **columns, "point": pa.array(values[:, 0].astype(np.int8))})


def read_models(folder: Path) -> list[ModelProfile]:
    """Read the profiles that ``write_models`` wrote.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not such a table.
    """
    table = ModelsTable.read(folder)
    return [table.figures(name) for name in table.models]


def _of_group(content: pa.Buffer, group: int) -> dict[str, Floats]:
    """The moments of a row group by the text of their way."""
    # Threads of pyarrow occasionally abort a process that ends soon after they have read.
    table = pq.ParquetFile(content).read_row_group(group, use_threads=False)
    ways: npt.NDArray[Any] = table["way"].to_numpy(zero_copy_only=False)
    values = np.stack([table[name].to_numpy().astype(float) for name in _COLUMNS], axis=1)
    starts = np.flatnonzero(np.append(True, ways[1:] != ways[:-1]))
    return dict(zip(ways[starts], np.split(values, starts[1:]), strict=True))


class ModelsTable:
    """The profiles of models, from files of ``write_models`` or ``write_model``, decoded on demand.

    Args:
        moments: content of the Parquet file.
        models: content of the JSON file; if ``None``, the metadata of the Parquet file have that content.
        base: reads the Parquet file that the first one continues, given its path next to the folder.

    Raises:
        ValueError: it is not such a table.
    """

    def __init__(self, moments: bytes, models: bytes | None = None, base: Callable[[str], bytes] | None = None) -> None:
        self._content = pa.py_buffer(moments)
        parquet = pq.ParquetFile(self._content)
        about = parquet.schema_arrow.metadata or {}
        if models is None:
            models = about.get(MODELS.encode(), b"")
        self._base: pa.Buffer | None = None
        self._of_base: list[str] = []
        if named := about.get(_BASE.encode()):
            if base is None:
                raise ValueError(f"{MOMENTS} continues {named.decode()}, which is not given")
            self._base = pa.py_buffer(base(named.decode()))
            self._of_base = json.loads(about[_MODELS_OF_BASE.encode()])
        self._others: dict[str, dict[str, Any]] = json.loads(models)
        if parquet.schema_arrow.names != ["way", *_COLUMNS]:
            raise ValueError(f"{MOMENTS} has the columns {', '.join(parquet.schema_arrow.names)}")
        if parquet.num_row_groups != len(self._others):
            raise ValueError(f"{MOMENTS} is of {parquet.num_row_groups} models, {MODELS} of {len(self._others)}")
        self._of_model: dict[str, dict[str, Floats]] = {}
        self._trainables: dict[tuple[str, str, str], Trainable] = {}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder that ``write_models`` wrote, or a file that ``write_model`` wrote.

        Raises:
            OSError: a file cannot be read.
            ValueError: it is not such a table.
        """
        if path.is_dir():
            beside = path.resolve().parent
            return cls(
                (path / MOMENTS).read_bytes(), (path / MODELS).read_bytes(), lambda name: (beside / name).read_bytes()
            )
        return cls(path.read_bytes())

    def _moments(self, model: str) -> dict[str, Floats]:
        """The moments of a model by the text of their way."""
        if model not in self._of_model:
            of_base = self._base is not None and model in self._of_base
            self._of_model[model] = {
                **(_of_group(self._base, self._of_base.index(model)) if of_base else {}),
                **_of_group(self._content, list(self._others).index(model)),
            }
        return self._of_model[model]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._others)

    def ways(self, model: str) -> list[LayerWay | HeadWay]:
        """The settings under which layers and head of a model were traced."""
        return [_way(text) for text in self._moments(model)]

    def figures(self, model: str) -> ModelProfile:
        """The profile of one model."""
        found = ModelProfile(model, self._others[model]["made_of"])
        for text, moments in self._moments(model).items():
            way = _way(text)
            if isinstance(way, LayerWay):
                found.layers[way] = moments
            else:
                found.heads[way] = moments
        for text, trainable in self._others[model]["units"].items():
            method, targets = text.split(" ")
            found.units[method, targets] = _trainable_from_json(trainable)
        if _ADAPTED in self._others[model]:
            found = replace(found, modules=self.modules(model))
        found.problems.update({tuple(text.split(" ")): why for text, why in self._others[model]["problems"].items()})
        return found

    def modules(self, model: str) -> AdaptedModules | None:
        """The linear layers of a model that can have adapters; ``None`` if they are not known."""
        found = self._others[model].get(_ADAPTED)
        return modules_of_released(model) if found is None else AdaptedModules.from_json(found)

    def trainables(self, model: str) -> list[tuple[str, str]]:
        """The methods and LoRA targets whose trainable parameters are known."""
        keys = (text.split(" ") for text in self._others[model]["units"])
        return [(method, targets) for method, targets in keys]

    def moments(self, model: str, way: LayerWay | HeadWay) -> Floats | None:
        """Moments with the columns of ``StackMoment``, shape (moments, 9), in bytes.

        ``None`` if there are none; ``problem`` gives the reason.
        """
        return self._moments(model).get(_text(way))

    def trainable(self, model: str, method: str, targets: str) -> Trainable | None:
        """The trainable parameters; ``None`` if they are not known, and ``problem`` gives the reason."""
        key = model, method, targets
        if key not in self._trainables:
            found = self._others[model]["units"].get(_text((method, targets)))
            if found is None:
                return None
            self._trainables[key] = _trainable_from_json(found)
        return self._trainables[key]

    def problem(self, model: str, key: Iterable[object]) -> str:
        """The reason why a key has no profile; empty text if none is recorded."""
        return str(self._others[model]["problems"].get(_text(key), ""))
