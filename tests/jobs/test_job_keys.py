"""The table of keys has every setting of the libraries that are installed: a new release is a diff of the table."""

import dataclasses
import re
from argparse import ArgumentParser
from collections.abc import Iterable

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from peft import LoraConfig
from pinned_fields import FIELDS
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments

from autoconf.jobs.importers.facts import FACTS_OF
from autoconf.jobs.importers.key_table import job_keys
from autoconf.jobs.importers.python_models import adapter_key
from autoconf.jobs.job import Workload

DIALECTS = job_keys().dialects


def unknown(names: Iterable[str], *dialects: str) -> list[str]:
    """The names that no dialect knows, neither as a key nor as a section of keys."""
    return [name for name in names if not any(knows(name, dialect) for dialect in dialects)]


def knows(name: str, dialect: str) -> bool:
    table = DIALECTS[dialect]
    if dialect == "fsdp":
        name = name.removeprefix("fsdp_")
    return table.knows(name) or any(key.startswith((f"{name}.", f"{name}*", f"{name}[")) for key in table.keys)


def fields(*classes: type) -> list[str]:
    return [field.name for one in classes for field in dataclasses.fields(one)]


def options(parser: ArgumentParser) -> list[str]:
    flags = (flag for action in parser._actions for flag in action.option_strings if flag.startswith("--"))
    return sorted({flag.lstrip("-").replace("-", "_") for flag in flags} - {"help"})


def test_the_table_has_every_argument_of_the_trainer() -> None:
    assert unknown(fields(TrainingArguments), "arguments") == []


def test_the_table_has_every_setting_of_lora() -> None:
    assert unknown(map(adapter_key, fields(LoraConfig)), "arguments") == []


def test_the_table_has_every_setting_of_the_launchers() -> None:
    of_sections = ["fsdp_config", "parallelism_config", "mpirun_config", "fp8_config", "dynamo_config"]
    names = [*fields(ClusterConfig, DeepSpeedPlugin), *options(launch_command_parser()), *options(get_args_parser())]
    assert unknown(set(names) - set(of_sections), "accelerate", "fsdp") == []
    assert unknown(fields(FullyShardedDataParallelPlugin), "fsdp") == []


@pytest.mark.parametrize(
    ("package", "dialects"),
    [
        ("trl", ("arguments",)),
        ("llamafactory", ("llama-factory",)),
        ("axolotl", ("axolotl", "fsdp")),
        ("ms_swift", ("ms-swift",)),
        ("fms_hf_tuning", ("arguments",)),
        ("peft", ("peft-sft",)),
        ("openrlhf", ("openrlhf",)),
        ("verl", ("verl",)),
    ],
)
def test_the_table_has_every_setting_of_the_pinned_releases(package: str, dialects: tuple[str, ...]) -> None:
    """A new release is a diff of tests/data/pinned_fields.yaml, which tests/helpers/pinned_fields.py writes."""
    files = yaml.safe_load(FIELDS.read_text())[package]["files"]
    names = {field for classes in files.values() for fields in classes.values() for field in fields}
    assert unknown(names - {"fsdp_config"}, *dialects) == []


def test_the_pinned_releases_are_those_whose_keys_are_read() -> None:
    """The sources that the table names are of the same versions."""
    pinned = yaml.safe_load(FIELDS.read_text())
    own = {"trl": "arguments", "llamafactory": "llama-factory", "ms_swift": "ms-swift", "peft": "peft-sft"}
    dialects = {package: own.get(package, package) for package in pinned}
    of_tuning = job_keys().frameworks["fms-hf-tuning"].defaults["tokens_per_sample"].source
    sources = {"fms_hf_tuning": of_tuning}  # whose keys are among those of the Trainer
    for package, dialect in dialects.items():
        assert f"v{pinned[package]['version']}" in (
            sources[package] if package in sources else DIALECTS[dialect].source
        )


def test_a_setting_that_the_table_does_not_have_is_noticed() -> None:
    assert unknown(["optim", "optim_of_tomorrow", "fsdp_version"], "arguments", "fsdp") == ["optim_of_tomorrow"]


def test_every_fact_of_the_table_decides_a_field() -> None:
    known = {*Workload.model_fields, *(fact for facts in FACTS_OF.values() for fact in facts), "dropout"}
    facts = {fact for dialect in DIALECTS.values() for key in dialect.keys.values() for fact in key.facts()}
    assert facts - known == set()


def test_an_option_that_a_refusal_names_replaces_the_key() -> None:
    """Keys whose reason tells to take them out first are no matter of options."""
    keys = [(name, key) for dialect in DIALECTS.values() for name, key in dialect.keys.items()]
    named = {name: re.findall(r"(?<!out, and )(?:give|and) --([a-z-]+)", key.because) for name, key in keys}
    facts = {name: key.facts() for name, key in keys}
    assert named["model_component"] == ["model-name", "method"]
    for name, options in named.items():
        assert {option.replace("-", "_") for option in options} <= facts[name], name
