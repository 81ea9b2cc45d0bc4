"""Memory profiles on disk: moments as Parquet, everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from autoconf.memory.optimizers import Shape
from autoconf.memory.profile import HeadWay, LayerWay, ModelFigures, StackMoment, Trainable, Units

MOMENTS, MODELS = "moments.parquet", "models.json"


def _text(key: Iterable[object]) -> str:
    return " ".join(map(str, key))


def _way(text: str) -> LayerWay | HeadWay:
    words: list[Any] = [{"True": True, "False": False}.get(word, word) for word in text.split(" ")]
    return LayerWay(*words) if len(words) == len(LayerWay._fields) else HeadWay(*words)


def write_models(models: Iterable[ModelFigures], folder: Path) -> None:
    """Write figures of models: their moments as Parquet, a row group each, everything else as JSON."""
    models = list(models)
    with (folder / MOMENTS).open("wb") as stream:
        _write_moments(models, stream)
    (folder / MODELS).write_text(_others(models).replace('"},"', '"},\n"') + "\n", encoding="utf-8")


def write_model(model: ModelFigures, stream: BinaryIO, about: Mapping[str, str]) -> None:
    """Write figures of one model as one Parquet file, whose metadata hold everything that is no moment.

    Args:
        model: its figures.
        stream: where they go.
        about: more metadata; ``metadata`` reads them.
    """
    _write_moments([model], stream, {MODELS: _others([model]), **about})


def metadata(path: Path, key: str) -> str | None:
    """What ``write_model`` was given under a key; ``None`` where there is no such key.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not Parquet.
    """
    found = (pq.read_schema(path).metadata or {}).get(key.encode())
    return None if found is None else found.decode()


def _others(models: Iterable[ModelFigures]) -> str:
    others = {
        model.model_name: {
            "made_of": model.made_of,
            "units": {
                _text(key): {
                    "units": asdict(trainable.units),
                    "shapes": [[*shape, count] for shape, count in trainable.shapes],
                }
                for key, trainable in model.units.items()
            },
            "problems": {_text(key): sentence for key, sentence in model.problems.items()},
        }
        for model in models
    }
    return json.dumps(others, separators=(",", ":"))


def _write_moments(models: Iterable[ModelFigures], stream: BinaryIO, about: Mapping[str, str] | None = None) -> None:
    tables = [_moments_table({**model.layers, **model.heads}) for model in models]
    scales = {name: "BYTE_STREAM_SPLIT" for name in StackMoment._fields[1:5]}
    with pq.ParquetWriter(
        stream,
        tables[0].schema.with_metadata(about),
        compression="zstd",
        compression_level=15,
        use_dictionary=["way", "point", *StackMoment._fields[5:]],
        column_encoding=scales,
    ) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(about), row_group_size=len(table))


def _moments_table(moments: dict[Any, np.ndarray]) -> pa.Table:
    ways = [_text(way) for way, rows in moments.items() for _ in range(len(rows))]
    values = np.concatenate(list(moments.values()))
    seven_digits = values.astype(np.float32)
    columns = {name: pa.array(seven_digits[:, i]) for i, name in enumerate(StackMoment._fields)}
    return pa.table({"way": ways, **columns, "point": pa.array(values[:, 0].astype(np.int8))})


def read_models(folder: Path) -> list[ModelFigures]:
    """Read what ``write_models`` wrote.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not such a table.
    """
    table = ModelsTable(folder)
    return [table.figures(name) for name in table.models]


class ModelsTable:
    """Figures of models as ``write_models`` wrote them into a folder, or ``write_model`` into a file.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not such a table.
    """

    def __init__(self, path: Path) -> None:
        moments = path / MOMENTS if path.is_dir() else path
        # What is read is what was there, and verified, when the version was loaded.
        self._content = pa.py_buffer(moments.read_bytes())
        parquet = pq.ParquetFile(self._content)
        if path.is_dir():
            others: str | bytes = (path / MODELS).read_text(encoding="utf-8")
        else:
            others = (parquet.schema_arrow.metadata or {}).get(MODELS.encode(), b"")
        self._others = json.loads(others)
        if parquet.schema_arrow.names != ["way", *StackMoment._fields]:
            raise ValueError(f"{moments.name} has the columns {', '.join(parquet.schema_arrow.names)}")
        if parquet.num_row_groups != len(self._others):
            raise ValueError(f"{moments.name} is of {parquet.num_row_groups} models, {MODELS} of {len(self._others)}")
        self._of_model: dict[str, dict[str, np.ndarray]] = {}

    def _moments(self, model: str) -> dict[str, np.ndarray]:
        """A model's moments by the text of their way, read when somebody asks for them."""
        if model not in self._of_model:
            group = list(self._others).index(model)
            # A process that ends soon after threads of pyarrow have read is aborted by them now and then.
            table = pq.ParquetFile(self._content).read_row_group(group, use_threads=False)
            ways = table["way"].to_numpy(zero_copy_only=False)
            values = np.stack([table[name].to_numpy().astype(float) for name in StackMoment._fields], axis=1)
            starts = np.flatnonzero(np.append(True, ways[1:] != ways[:-1]))
            self._of_model[model] = dict(zip(ways[starts], np.split(values, starts[1:]), strict=True))
        return self._of_model[model]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._others)

    def ways(self, model: str) -> list[LayerWay | HeadWay]:
        """In which ways layers and head of a model were traced."""
        return [_way(text) for text in self._moments(model)]

    def figures(self, model: str) -> ModelFigures:
        """All of one model."""
        found = ModelFigures(model, self._others[model]["made_of"])
        for way in self.ways(model):
            moments = self.moments(model, way)
            assert moments is not None
            if isinstance(way, LayerWay):
                found.layers[way] = moments
            else:
                found.heads[way] = moments
        for key in self.trainables(model):
            trainable = self.trainable(model, *key)
            assert trainable is not None
            found.units[key] = trainable
        found.problems.update({tuple(text.split(" ")): why for text, why in self._others[model]["problems"].items()})
        return found

    def trainables(self, model: str) -> list[tuple[str, str]]:
        """Methods and targets of which it is known what trains."""
        keys = (text.split(" ") for text in self._others[model]["units"])
        return [(method, targets) for method, targets in keys]

    def moments(self, model: str, way: LayerWay | HeadWay) -> np.ndarray | None:
        """Moments with the columns of ``StackMoment``; None where there are none: ``problem`` says why."""
        return self._moments(model).get(_text(way))

    def trainable(self, model: str, method: str, targets: str) -> Trainable | None:
        """What trains; None where it cannot be told: ``problem`` says why."""
        found = self._others[model]["units"].get(_text((method, targets)))
        if found is None:
            return None
        shapes = [
            (Shape(tuple(dims), itemsize, embedding), count) for dims, itemsize, embedding, count in found["shapes"]
        ]
        return Trainable(Units(**found["units"]), tuple(shapes))

    def problem(self, model: str, key: Iterable[object]) -> str:
        """Why there are no figures; empty where nothing is said of it."""
        return self._others[model]["problems"].get(_text(key), "")
