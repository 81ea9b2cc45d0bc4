"""The tools for agents, called by the client of the official SDK: over standard streams, and at /mcp."""

import json
import os
import subprocess
import sys

import anyio
import pytest

mcp = pytest.importorskip("mcp")

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from service import COMMAND, JOB, serving

from autoconf import Workload, recommend, throughput

pytestmark = pytest.mark.long

STDIO = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "mcp"], env=dict(os.environ))
EACH = {**{field: value for field, value in JOB.items() if field != "batch_size"}, "per_device_train_batch_size": 8}


def without(job, field):
    return {name: value for name, value in job.items() if name != field}


@pytest.fixture(scope="module", params=["stdio", "http"])
def place(request):
    """Where the server is."""
    if request.param == "stdio":
        yield STDIO
        return
    pytest.importorskip("fastapi")
    with serving("--workers", "1") as server:
        yield f"{server.url}/mcp"


def with_client(place, function):
    """Call a function with a connected client."""

    async def run():
        async with Client(place) as client:
            return await function(client)

    return anyio.run(run)


def test_the_tools_have_schemas_and_give_the_answers_of_the_python_api(place):
    async def talk(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {*tools} == {"recommend", "estimate", "explain", "largest", "cheapest", "throughput", "read_job"}
        schema = tools["recommend"].input_schema
        assert {"model_name", "method", "gpu_model", "tokens_per_sample"} == {*schema["required"]}
        assert schema["properties"]["sharding"]["enum"][0] == "ddp"
        outputs = {name: {*tool.output_schema["properties"]} for name, tool in tools.items()}
        assert {"per_device_train_batch_size", "tokens_per_sample"} <= outputs["largest"]
        assert {"gpus", "at", "changes"} <= outputs["explain"] and "patched" in outputs["read_job"]
        return [
            await client.call_tool(name, arguments)
            for name, arguments in (
                ("recommend", JOB), ("estimate", {**JOB, "number_gpus": 1}), ("explain", JOB),
                ("largest", {**without(EACH, "per_device_train_batch_size"), "number_gpus": 2}),
                ("largest", {**JOB, "tokens_per_sample": None, "number_gpus": 2}),
                ("cheapest", without(JOB, "gpu_model")), ("throughput", {**JOB, "number_gpus": 2, "steps": 100}),
            )
        ]  # fmt: skip

    answers = with_client(place, talk)  # the client validates each answer against the schema of its tool
    assert not any(answer.is_error for answer in answers)
    assert answers[0].structured_content["gpus"] == recommend(Workload(**JOB)).gpus
    texts = [answer.content[0].text for answer in answers]
    assert texts[0].startswith("2 GPUs, with the training stack reference. Note: stack was not given")
    assert texts[1].startswith("Does not fit: probability 0.00, 0.90 required")
    assert "On 1: 112.6 of 79.1 GiB, does not fit. On 2:" in texts[2] and "batch_size=11 would fit on 1 GPU" in texts[2]
    assert texts[3].startswith("9 samples on each GPU, 18 over all, on 2 GPUs.")
    assert texts[4].startswith("9790 tokens per sample on 2 GPUs.")
    assert texts[5].startswith("1. ") and "per hour" in texts[5]
    found = throughput(Workload(**JOB), number_gpus=2, steps=100)
    assert texts[6].startswith(f"{found.tokens_per_second:,.0f} tokens per second (")
    assert f"The run takes {found.hours:.1f} hours, which cost {found.cost:.2f}." in texts[6]
    assert not [text for text in texts if len(text) >= 1_000]


def test_a_job_file_is_read_answered_and_patched(place):
    script = (
        "trl sft --model_name_or_path Qwen/Qwen2.5-7B --max_length 2048 --per_device_train_batch_size 1 "
        "--use_peft --lora_target_modules all-linear --num_processes 8\n"
    )

    async def talk(client):
        return await client.call_tool("read_job", {"files": {"train.sh": script}, "options": {"gpu_model": "H100"}})

    answer = with_client(place, talk)
    assert not answer.is_error, answer.content
    assert answer.structured_content["read"]["job"]["model_name"] == "Qwen/Qwen2.5-7B"
    assert answer.content[0].text.startswith("Read ")


def test_errors_are_errors_that_name_the_field(place):
    async def talk(client):
        found = [
            await client.call_tool(name, arguments)
            for name, arguments in (
                ("recommend", {**JOB, "batch_size": 0}), ("recommend", {}), ("largest", JOB),
                ("read_job", {"files": {"a.sh": 3}}), ("read_job", {"paths": ["/etc/passwd"]}),
                ("read_job", {"files": {"a.sh": "accelerate launch --config_file /etc/passwd train.py"}}),
            )
        ]  # fmt: skip
        with pytest.raises(MCPError, match="no such tool"):
            await client.call_tool("delete", {})
        found.append(await client.call_tool("recommend", {**JOB, "max_gpus": 1}))
        return found

    *errors, no = with_client(place, talk)
    texts = [answer.content[0].text for answer in errors]
    assert all(answer.is_error for answer in errors)
    for text, named in zip(
        texts, ("batch_size", "model_name", "number_gpus", "a.sh", "paths", "/etc/passwd"), strict=True
    ):
        assert named in text
    assert not no.is_error  # "no" is an answer
    assert no.content[0].text.startswith("No: ")


def test_a_page_of_another_site_cannot_call_the_tools():
    pytest.importorskip("fastapi")
    with serving("--workers", "1") as server:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        for strange in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            answer = server.send("POST", "/mcp", json.dumps(body), {**headers, **strange})
            assert answer.status in (403, 421), answer


def test_without_the_extra_the_command_names_it():
    code = (
        "import sys, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name, *rest: None if name == 'mcp' else find(name, *rest);"
        "sys.argv = ['ado-autoconf', 'mcp'];"
        "from autoconf.cli import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "mcp needs the extra [mcp]" in done.stderr and "pip install '.[mcp]'" in done.stderr
