"""A damaged file, or one of another encoding, is refused in a sentence that names it; harmless marks change nothing."""

import json
from pathlib import Path

import pytest

from autoconf.errors import BadInput
from autoconf.jobs.importers.reader import read_job

AXOLOTL = (
    "base_model: Qwen/Qwen2.5-7B\nsequence_len: 2048\nmicro_batch_size: 2\nadapter: lora\nlora_r: 8\n"
    "lora_target_linear: true\ndatasets: [{path: x, type: alpaca}]\n"
)
COMMAND = "trl sft --model_name_or_path Qwen/Qwen2.5-7B \\\n --max_length 2048 --per_device_train_batch_size 2\n"
DAMAGED = {
    "cut.json": (
        '{"model_name_or_path": "Qwen/Qwen2.5-7B", "optim": ',
        "cut.json: must be JSON .*cut.json:2: not",
    ),
    "cut.yaml": ("base_model: a\ndatasets: [{path: x", "cut.yaml:3: not YAML"),
    "cut.ipynb": ('{"cells": [{"cell_type": "code"', "cut.ipynb: must be JSON"),
    "binary.yaml": (b"\x93NUMPY\x01\x00", "binary.yaml:1: not UTF-8 text: byte 0x93"),
    "null.sh": (COMMAND.replace("7B", "7B\0"), "null.sh:1: not text: a null character"),
    "utf16.yaml": (AXOLOTL.encode("utf-16"), "utf16.yaml: UTF-16 text; save it as UTF-8"),
    "large.yaml": ("a: 1\n" * 300_000, "large.yaml: cannot read it: larger than 1048576 bytes"),
    "cycle.yaml": (f"{AXOLOTL}a: &a [*a]\n", "cycle.yaml:8: the alias .a is inside of what it refers to"),
    "twice.yaml": (f"{AXOLOTL}sequence_len: 4096\n", "twice.yaml:8: the key 'sequence_len' is repeated"),
    "list.yaml": (AXOLOTL.replace("2048", "[1, 2]"), "list.yaml:2 sequence_len: .1, 2.: tokens_per_sample: must be"),
    "section.yaml": (
        AXOLOTL.replace("size: 2", "size: {a: 1}"),
        "section.yaml:3 micro_batch_size.a: 1: this key is not",
    ),
    "accelerate.yaml": (
        "distributed_type: FSDP\nfsdp_config: 7\n",
        "accelerate.yaml:2 fsdp_config: 7: must be a section",
    ),
    "syntax.py": ("from trl import SFTConfig\nx = = 3\n", "syntax.py:2: looks like a Python script, and is not"),
    "cells.ipynb": (json.dumps({"nbformat": 4, "cells": []}), "cells.ipynb: a notebook without cells of code"),
    "none.ipynb": (json.dumps({"nbformat": 4}), "none.ipynb: a notebook without cells of code"),
    "helm.yaml": (
        "kind: Job\nmetadata: {name: {{ .Release.Name }}}\n",
        "helm.yaml:2: a key must be text; a template of Helm or Jinja has to be filled in first",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    text, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=reason) as refused:
        read_job([str(tmp_path / name)], {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [AXOLOTL, COMMAND])
@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.replace("\n", "\r\n").encode(),
], ids=["byte order mark", "line ends of Windows"])  # fmt: skip
def test_marks_and_line_ends_change_nothing(text: str, change, tmp_path: Path) -> None:
    fields = []
    for name, data in (("plain", text.encode()), ("changed", change(text))):
        (tmp_path / name).write_bytes(data)
        fields.append(read_job([str(tmp_path / name)], {}).fields)
    assert fields[0] == fields[1]
    assert fields[0]["tokens_per_sample"] == 2048
