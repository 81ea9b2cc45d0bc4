"""JSON schemas of jobs and answers, for OpenAPI and for agents, from the models that validate jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from autoconf.jobs.job import Workload
from autoconf.jobs.queries import ALL_ARGUMENTS, NUMBER_GPUS, Query
from autoconf.planner.results import Estimate
from autoconf.service.queries import QUERIES, ServiceQuery, example


def job_schema(query: Query, bounds: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The schema of a job of a query: its fields and arguments, with an example.

    Args:
        query: The query.
        bounds: Positive numbers that the query takes besides, with their descriptions.

    >>> from autoconf.jobs.queries import LARGEST_BATCH
    >>> job_schema(LARGEST_BATCH)["required"]
    ['model_name', 'method', 'gpu_model', 'tokens_per_sample', 'number_gpus']
    """
    fields = Workload.model_json_schema()["properties"]
    properties = {field: _plain(fields[field]) for field in query.fields if field in fields}
    for name in (*query.arguments, *query.optional_arguments):
        properties[name] = {"type": "integer", "minimum": 1, "description": ALL_ARGUMENTS[name]}
    for name, description in (bounds or {}).items():
        properties[name] = {"type": "number", "exclusiveMinimum": 0, "description": description}
    return {
        "type": "object",
        "properties": properties,
        "required": [*query.required],
        "additionalProperties": False,
        "examples": [example(query)],
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without its title and without ``null``, which means the same as leaving the field out."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "anyOf")}
    if kept.get("default", ...) is None:
        del kept["default"]
    (kind,) = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kept |= {key: value for key, value in kind.items() if key in ("type", "enum")}
    return kept | ({"minimum": 1} if kept.get("type") in ("integer", "number") else {})


def answer_schema(served: ServiceQuery) -> dict[str, Any]:
    """The schema of an answer about one job, which also has the job's fields."""
    fields = TypeAdapter(served.answer_type).json_schema()["properties"]
    columns = {column: fields[column] for column in served.query.answers}
    after = {
        "training_stack": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "string"}},
    }
    if served.ranked:
        after["ranking"] = {"type": "array", "items": {"type": "object", "properties": columns}}
        columns = {}
    return {"type": "object", "properties": {**columns, **after}}


def explanation_schema() -> dict[str, Any]:
    """The schema of an explanation, which also has the job's fields.

    >>> explanation_schema()["properties"]["at"]["items"]["properties"]["fits"]["anyOf"]
    [{'type': 'integer'}, {'type': 'null'}]
    """
    recommended = answer_schema(QUERIES["recommend"])["properties"]
    held = {NUMBER_GPUS: {"type": "integer"}, **TypeAdapter(Estimate).json_schema()["properties"]}
    change = {"sentence": {"type": "string"}, "field": {"type": "string"}}
    change |= {"gpus": {"type": "integer"}, "workers": {"type": "integer"}}
    return {
        "type": "object",
        "properties": {
            **recommended,
            "why": {"type": "string", "description": "The reason, without the changes"},
            "at": {
                "type": "array",
                "description": "The memory on that number of GPUs and on the next smaller one",
                "items": {"type": "object", "properties": held},
            },
            "changes": {
                "type": "array",
                "description": "Changes that would help, cheapest first",
                "items": {"type": "object", "properties": change},
            },
            "threshold": {"type": ["number", "null"], "description": "The probability of fitting that is required"},
        },
    }


def files_answer_schema() -> dict[str, Any]:
    """The schema of an answer about job files.

    >>> [*files_answer_schema()["properties"]]
    ['read', 'answer', 'patched', 'not_patched']
    """
    lines = {"type": "array", "items": {"type": "string"}}
    sources = {"type": "array", "items": {"type": "object"}}
    read = {"job": {"type": "object"}, "read": sources, "assumed": lines, "unknown": lines}
    read |= {"belongs_to": {"type": "string"}, "notes": lines}
    patched = {"file": {"type": "string"}, "text": {"type": "string"}, "notes": lines}
    return {
        "type": "object",
        "properties": {
            "read": {"type": "object", "properties": read},
            "answer": explanation_schema(),
            "patched": {"type": ["object", "null"], "properties": patched},
            "not_patched": {"type": "string", "description": "Why no file is patched; else empty"},
        },
    }


FILES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "files": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "minProperties": 1,
            "description": "The text of each file by its name: the job file, and the files that it names",
        },
        "options": {
            "type": "object",
            "description": "Fields of the job that override the files, or that they do not state, such as gpu_model",
        },
        "nodes_only": {
            "type": "boolean",
            "default": False,
            "description": "Change only the number of nodes of a manifest; the GPUs of each node stay",
        },
    },
    "required": ["files"],
    "additionalProperties": False,
    "examples": [
        {
            "files": {
                "train.sh": "accelerate launch --num_processes 8 --use_fsdp train.py --model_name_or_path "
                "Qwen/Qwen2.5-7B-Instruct --bf16 --gradient_checkpointing "
                "--per_device_train_batch_size 4 --max_seq_length 4096\n"
            },
            "options": {"gpu_model": "H100", "method": "full"},
        }
    ],
}
