"""Recognize files of other tools, to refuse them by name, and keys of other objectives than supervised fine-tuning."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

OTHER_FILES = Path(__file__).with_name("other_files.yaml")
# Programs of other tools, the words behind those that also do other things, and the parts of modules.
OTHER_TOOLS = {
    "tune": "torchtune", "swift": "ms-swift", "megatron": "ms-swift", "xtuner": "XTuner", "litgpt": "LitGPT",
    "mlx_lm.lora": "MLX", "nemo": "NeMo", "torchtitan": "torchtitan", "autotrain": "AutoTrain", "ludwig": "Ludwig",
    "unsloth": "unsloth", "sky": "SkyPilot", "oumi": "Oumi",
    "colossalai": "ColossalAI",
}  # fmt: skip
STARTS = {
    "tune": ("run",), "swift": ("sft", "rlhf", "pt"), "sky": ("launch", "jobs"), "nemo": ("llm",), "oumi": ("train",),
    "ludwig": ("train", "experiment"), "xtuner": ("train",), "unsloth": ("train",),
    "megatron": ("sft", "rlhf", "pt"), "colossalai": ("run",),
}  # fmt: skip
OTHER_MODULES = (
    ("openrlhf", "OpenRLHF"), ("verl", "verl"), ("nemo", "NeMo"), ("mlx_lm", "MLX"), ("swift", "ms-swift"),
    ("megatron", "Megatron-LM"), ("pretrain_gpt", "Megatron-LM"), ("torchtitan", "torchtitan"), ("litgpt", "LitGPT"),
    ("xtuner", "XTuner"), ("lmflow", "LMFlow"),
    ("Megatron-LM", "Megatron-LM"), ("Megatron-LLM", "Megatron-LLM"),
)  # fmt: skip
PYTHON = "a Python script"
# First words of names of scripts that come before or after a training.
_OTHER_STEPS = {
    "analyze", "annotate", "benchmark", "convert", "decode", "download", "embed", "eval", "evaluate", "evaluation",
    "export", "generate", "generation", "infer", "inference", "merge", "plot", "predict", "preprocess", "push", "score",
    "tokenize", "upload", "visualize",
}  # fmt: skip
OFF = ("", "none", "null", "false", "no", "off", "0", "{}", "[]")


class _OtherFiles(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: dict[str, tuple[tuple[str, ...], ...]]
    objectives: dict[str, tuple[str, ...]]
    nearest: dict[str, str]


@cache
def _table() -> _OtherFiles:
    import yaml

    return _OtherFiles.model_validate(yaml.safe_load(OTHER_FILES.read_text(encoding="utf-8")))


def tool_of(document: Mapping[str, Any]) -> str | None:
    """The kind of file that a mapping is, if it belongs to another tool.

    >>> tool_of({"actor_rollout_ref": {"model": {"path": "Qwen/Qwen2.5-7B"}}})
    'a config of verl'
    """
    for name, signs in _table().tools.items():
        if any(all(_has(document, key) for key in keys) for keys in signs):
            return name
    return None


def text_kind(text: str, name: str) -> str | None:
    """The kind of a text that is neither settings nor a shell script; ``None`` if it is not recognized.

    >>> text_kind("from trl import SFTConfig\\n", "train"), text_kind("ls", "train")
    ('a Python script', None)
    """
    suffix = Path(name).suffix.casefold()
    is_script = text.startswith("#!") and "python" not in text.partition("\n")[0]
    if suffix == ".py" or (
        not is_script and re.search(r"^(from [\w.]+ import |import \w+|def \w+\()", text, re.MULTILINE)
    ):
        return PYTHON
    if suffix in (".md", ".rst", ".ipynb"):
        return "a document"
    if Path(name).name.startswith(("Makefile", "makefile", "GNUmakefile", "justfile")) or suffix == ".mk":
        return "a Makefile"
    if "Dockerfile" in Path(name).name or (not is_script and re.search(r"^FROM \S+(\n| AS )", text, re.MULTILINE)):
        return "a Dockerfile"
    if not is_script and re.search(r"^\s*\{\{-?|^\{%", text, re.MULTILINE):
        return "a template of Helm or Jinja"
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if suffix in (".toml", ".ini", ".cfg") or re.fullmatch(r"\[[\w.\"-]+\]", first):
        return _toml_kind(text)
    return None


def _toml_kind(text: str) -> str:
    try:
        return tool_of(tomllib.loads(text)) or "TOML"
    except (tomllib.TOMLDecodeError, RecursionError):
        return "TOML"


def nearest(tool: str) -> str:
    """The nearest way to ask for a job of another tool.

    >>> nearest("a config of mergekit")
    'give the job by options instead of --job'
    """
    ways = _table().nearest
    return next((way for name, way in ways.items() if name in tool), "give the job by options instead of --job")


def _has(document: Mapping[str, Any], key: str) -> bool:
    section, dot, inner = key.partition(".")
    if not dot:
        return key in document
    value = document.get(section)
    return isinstance(value, Mapping) and inner in value


def words_of(text: str) -> list[str]:
    """The words of the name of a script, a module or a file.

    >>> words_of("scripts/runDPO_v2.py")
    ['scripts', 'run', 'dpo', 'v', 'py']
    """
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).casefold())


def is_other_step(script: str) -> bool:
    """Whether the name of a script or a module says that it does something else than train.

    >>> is_other_step("tools/generate_model_card.py"), is_other_step("convert_and_train.py"), is_other_step("train.py")
    (True, False, False)
    """
    name = script.removesuffix(".py").replace(".", "/").rpartition("/")[2]
    words = words_of(name)
    return script == "lm_eval" or (bool(words) and words[0] in _OTHER_STEPS and "and" not in words)


def keys_of_objectives() -> Mapping[str, tuple[str, ...]]:
    """Patterns of keys by the kind of objective, other than supervised fine-tuning, that has them."""
    return _table().objectives


def is_off(value: Any) -> bool:
    """Whether a value disables its key.

    >>> is_off(False), is_off("none"), is_off(0), is_off(1)
    (True, True, True, False)
    """
    return str(value).strip().casefold() in OFF
