"""Read and write memory profiles: moments as Parquet, everything else as JSON.

The format is frozen since version 2.0.0. The key of a profile is a text of space-separated fields, 7 of a ``LayerWay``
or 4 of a ``HeadWay``. Some names on disk differ from the names in the code; see ``_COLUMNS`` and ``_ABSMAX``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import HeadWay, LayerWay, ModelProfile, StackMoment, Trainable, Units
from autoconf.memory.units import Floats

MOMENTS, MODELS = "moments.parquet", "models.json"

# The columns of ``StackMoment`` on disk.
_COLUMNS = (*StackMoment._fields[:5], "own", "newborn", "done", "rest")
_ABSMAX = "maxima_bytes"  # ``Units.absmax_bytes`` on disk


def _text(key: Iterable[object]) -> str:
    return " ".join(map(str, key))


def _way(text: str) -> LayerWay | HeadWay:
    words = text.split(" ")
    values: list[Any] = [{"True": True, "False": False}.get(word, word) for word in words]
    return LayerWay(*values) if len(words) == len(LayerWay._fields) else HeadWay(*values)


def write_models(models: Iterable[ModelProfile], folder: Path) -> None:
    """Write the profiles of models: moments as Parquet, one row group per model, everything else as JSON."""
    models = list(models)
    with (folder / MOMENTS).open("wb") as stream:
        _write_moments(models, stream)
    (folder / MODELS).write_text(_others(models).replace('"},"', '"},\n"') + "\n", encoding="utf-8")


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


class ModelsTable:
    """The profiles of models, from files of ``write_models`` or ``write_model``, decoded on demand.

    Args:
        moments: content of the Parquet file.
        models: content of the JSON file; if ``None``, the metadata of the Parquet file have that content.

    Raises:
        ValueError: it is not such a table.
    """

    def __init__(self, moments: bytes, models: bytes | None = None) -> None:
        self._content = pa.py_buffer(moments)
        parquet = pq.ParquetFile(self._content)
        if models is None:
            models = (parquet.schema_arrow.metadata or {}).get(MODELS.encode(), b"")
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
            return cls((path / MOMENTS).read_bytes(), (path / MODELS).read_bytes())
        return cls(path.read_bytes())

    def _moments(self, model: str) -> dict[str, Floats]:
        """The moments of a model by the text of their way."""
        if model not in self._of_model:
            group = list(self._others).index(model)
            # Threads of pyarrow occasionally abort a process that ends soon after they have read.
            table = pq.ParquetFile(self._content).read_row_group(group, use_threads=False)
            ways: npt.NDArray[Any] = table["way"].to_numpy(zero_copy_only=False)
            values = np.stack([table[name].to_numpy().astype(float) for name in _COLUMNS], axis=1)
            starts = np.flatnonzero(np.append(True, ways[1:] != ways[:-1]))
            self._of_model[model] = dict(zip(ways[starts], np.split(values, starts[1:]), strict=True))
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
        found.problems.update({tuple(text.split(" ")): why for text, why in self._others[model]["problems"].items()})
        return found

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
