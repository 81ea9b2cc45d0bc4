"""The queries as tools for agents, over the Model Context Protocol: on standard input and output, or at ``/mcp``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from autoconf.distribution import __version__
from autoconf.jobs.queries import LARGEST_BATCH, LARGEST_SAMPLE, MIN_GPUS
from autoconf.jobs.values import is_empty
from autoconf.predictor.user_versions import ModelsFolder
from autoconf.service.queries import QUERIES
from autoconf.service.schemas import FILES_SCHEMA, answer_schema, explanation_schema, files_answer_schema, job_schema
from autoconf.service.sentences import in_words
from autoconf.service.tasks import Reply, Task, reply_to

Ask = Callable[[Task], Awaitable[Reply]]
_INSTRUCTIONS = (
    "Memory of LLM fine-tuning jobs on GPUs, before they run. Call recommend for the minimum number of GPUs; when the "
    "answer is no, its reason ends with changes that would help. Call read_job first when there is a job file. Name "
    "the trainer's stack (trl, fms-hf-tuning, llama-factory), because the answer depends on it."
)


@dataclass(frozen=True)
class _AgentTool:
    """A tool: its description, its schemas, and the task for a call with arguments."""

    description: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    task: Callable[[dict[str, Any]], Task]


def _of_query(name: str, description: str) -> _AgentTool:
    served = QUERIES[name]
    return _AgentTool(
        description, job_schema(served.query), answer_schema(served), lambda job: Task("job", job, query=name)
    )


def _largest(job: dict[str, Any]) -> Task:
    """The largest batch of a job with a length of samples, or the longest samples of a job with a batch."""
    sample = is_empty(job.get("tokens_per_sample"))
    return Task("job", job, query="largest-sample" if sample else "largest-batch")


def _largest_schema() -> dict[str, Any]:
    batch, sample = job_schema(LARGEST_BATCH), job_schema(LARGEST_SAMPLE)
    required = [field for field in batch["required"] if field in sample["required"]]
    return {**batch, "properties": {**sample["properties"], **batch["properties"]}, "required": required}


def _largest_answer() -> dict[str, Any]:
    batch, sample = (answer_schema(QUERIES[name]) for name in ("largest-batch", "largest-sample"))
    return {**batch, "properties": {**sample["properties"], **batch["properties"]}}


TOOLS = {
    "recommend": _of_query(
        "recommend",
        "The minimum number of GPUs per worker and of workers on which a fine-tuning job does not run out of memory. "
        "If there is none, the reason names changes that would help.",
    ),
    "estimate": _of_query(
        "estimate", "The memory of each GPU of a job on number_gpus GPUs, by part in GiB, and whether the job fits."
    ),
    "explain": _AgentTool(
        "Why a job needs its number of GPUs: the memory on that number and on the next smaller one, and the changes "
        "that would lead to fewer GPUs or to a recommendation.",
        job_schema(MIN_GPUS),
        explanation_schema(),
        partial(Task, "explain"),
    ),
    "largest": _AgentTool(
        "The largest batch that fits on number_gpus GPUs; for a job with a batch but without tokens_per_sample, the "
        "longest samples that fit.",
        _largest_schema(),
        _largest_answer(),
        _largest,
    ),
    "throughput": _of_query(
        "throughput",
        "How fast a job runs on number_gpus GPUs, in tokens per second, and the hours and the cost of a run of steps, "
        "or of epochs over dataset_tokens.",
    ),
    "cheapest": _of_query(
        "gpu-model",
        "GPU types with the smallest layout on which a job fits, ranked by the cost of a run of steps, or of epochs "
        "over dataset_tokens, if its length is given, or else by the cost of a million tokens.",
    ),
    "read_job": _AgentTool(
        "Read a job from the texts of its files (shell, Slurm, Python, Kubernetes, accelerate, TRL, axolotl, "
        "LLaMA-Factory), answer it, and return the file with its GPU counts changed. Pass texts, not paths.",
        FILES_SCHEMA,
        files_answer_schema(),
        partial(Task, "files"),
    ),
}


def make_server(ask: Ask) -> Server[Any]:
    """Make the server.

    Args:
        ask: Answers a task.
    """

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Tool(
                    name=name,
                    description=tool.description,
                    input_schema=tool.inputs,
                    output_schema=tool.outputs,
                    annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
                )
                for name, tool in TOOLS.items()
            ]
        )

    async def call_tool(_: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        if params.name not in TOOLS:
            raise MCPError(INVALID_PARAMS, f"{params.name}: no such tool; the tools are {', '.join(TOOLS)}")
        arguments = params.arguments or {}
        problem = _wrong_type(params.name, arguments)
        reply = Reply("bad_input", problem) if problem else await ask(TOOLS[params.name].task(arguments))
        if reply.status != "ok":
            return CallToolResult(content=[TextContent(type="text", text=str(reply.content)[:2_000])], is_error=True)
        text = TextContent(type="text", text=in_words(params.name, reply.content))
        return CallToolResult(content=[text], structured_content=reply.content)

    return Server(
        "autoconf", version=__version__, instructions=_INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


def _wrong_type(name: str, arguments: dict[str, Any]) -> str:
    """What is wrong with the types of the files of ``read_job``; empty text for other tools."""
    if name != "read_job":
        return ""
    from autoconf.service.limits import Limits, Refused, check_files_body

    try:
        check_files_body(arguments, Limits())
    except Refused as refused:
        return refused.message
    return ""


def serve_on_standard_streams(models: ModelsFolder = None) -> None:
    """Answer one agent on standard input and output, until the input ends.

    Args:
        models: Folder of user versions; by default the one that the environment variable ``AUTOCONF_MODELS`` names.
    """

    async def ask(task: Task) -> Reply:
        return await anyio.to_thread.run_sync(reply_to, task, models)

    async def run() -> None:
        server = make_server(ask)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)
