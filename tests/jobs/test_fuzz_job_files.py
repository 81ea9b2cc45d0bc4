"""Any job file gives a job or a refusal, and a patch changes only counts."""

import json
import random
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from autoconf import Workload
from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import decode, load_documents
from autoconf.jobs.importers.patch import Layout, patch_files
from autoconf.jobs.importers.reader import read_job

DATA = Path(__file__).parents[1] / "data"
FILES = sorted(path for folder in ("job_files", "job_cases") for path in (DATA / folder).rglob("*") if path.is_file())
OPTIONS = {
    "model_name": "llama3.1-8b",
    "method": "lora",
    "gpu_model": "NVIDIA-A100-SXM4-80GB",
    "tokens_per_sample": 1024,
    "per_device_train_batch_size": 1,
}
ODD = [
    b'!!bool foo', b'!!int x', b"!!int ''", b'!!float x', b'!!null x', b'!!timestamp x', b'!!binary x', b'!!set {a}',
    b'!!python/object:os.system x', b'!!map [a]', b'!mine ', b'! ', b'&a ', b'*a', b'&a [*a]', b'&b {<<: *b}',
    b'<<: ', b'<<: [*a, 1]', b'? [a]\n: b', b'? a', b'---\n', b'...\n', b'%TAG ! x\n', b'%YAML 9.9\n', b'|\n',
    b'>-\n', b'\t', b'\xef\xbb\xbf', b'\xff', b'\xe2\x82', b'\xf0\x9f\x9a\x80', b'\xc2\x85', b'\xe2\x80\xa8', b'\x00',
    b'\x1b[31m', b'\r\n', b'"\\ud800"', b'"\\ud83d\\ude00"', b"'", b'"', b'`', b'$(', b'$((', b'${', b'${A:-', b'$1',
    b'$X', b'\\', b'\\\n', b'<<EOF\n', b'A+=', b'A=(1 2', b'if true; then\n', b'for i in 1 2; do\n', b'case $A in\n',
    b'fi\n', b'{', b'}', b'[', b']', b'#', b'.nan', b'-.inf', b'NaN', b'1e999', b'-1', b'0', b'0x8', b'08', b'0b_',
    b'1:30', b'1_000', b'true', b'null', b'~', b'2024-99-99', b'9' * 5000, b'a' * 5000, b'a/' * 2500, b'=' * 50,
    b'-' * 50, b'[' * 200, b'- ' * 200, b'{"a":' * 120, b'kind: PyTorchJob\n', b'apiVersion: v1\n',
    b'num_processes: ', b'gpu_ids: 1,2\n', b'--num_processes ', b'--nproc_per_node=', b'nvidia.com/gpu: 8',
    b'env: [{name: A, value: 1}]', b'[]', b'{}', b'[1, 2]', b'{a: 1}', b'--config_file ', b'.yaml',
]  # fmt: skip
MANY = 20_000
SECONDS = 2


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[min(end, start + 40) :] if rng.random() < 0.7 else data[:end]


def change_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[i]
        case 1:
            lines.insert(j, lines[i])
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = b" " * rng.randrange(1, 4) + lines[i]
    return b"".join(lines)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Replace a token by one of another file, or by something odd."""
    tokens = re.split(rb"(\s+)", data)
    place = rng.randrange(len(tokens))
    if rng.random() < 0.3:
        others = re.split(rb"\s+", rng.choice(FILES).read_bytes()[:4000])
        tokens[place] = rng.choice(others)
    elif rng.random() < 0.5:
        tokens[place] = rng.choice(ODD)
    else:
        tokens[place] = tokens[place] + rng.choice(ODD)
    return b"".join(tokens)


def replace_value(data: bytes, rng: random.Random) -> bytes:
    """Put something odd in the place of a value, or of a key."""
    pairs = list(re.finditer(rb"([\w./-]+)(: *|=| )([^\n,}]*)", data))
    if not pairs:
        return data
    found = rng.choice(pairs)
    group = rng.choice((1, 3, 3))
    new = rng.choice(ODD) + (found[group] if rng.random() < 0.4 else b"")
    return data[: found.start(group)] + new + data[found.end(group) :]


def nest(data: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return b"a:\n" + b"".join(b"  " + line for line in data.splitlines(keepends=True))
        case 1:
            return b"- " + data.replace(b"\n", b"\n  ")
        case 2:
            return b"[" * rng.randrange(1, 150) + data
        case _:
            return data + b"\n---\n" + rng.choice(FILES).read_bytes()[:4000]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip, cut, change_lines, splice, splice, replace_value, replace_value, nest,
]  # fmt: skip


def scalars(data: bytes) -> list[str]:
    """The scalars of a YAML text, with aliases resolved; the words of any other text, such as a script."""
    try:
        return yaml_scalars(data)
    except yaml.YAMLError:
        return data.decode("utf-8-sig").split()


def yaml_scalars(data: bytes) -> list[str]:
    anchors: dict[str, str] = {}
    values = []
    for event in yaml.parse(data.decode("utf-8-sig").replace("\t", " "), yaml.CSafeLoader):
        if isinstance(event, yaml.ScalarEvent):
            anchors[event.anchor] = event.value
            values.append(event.value)
        elif isinstance(event, yaml.AliasEvent):
            values.append(anchors.get(event.anchor, ""))
    return values


def without_counts(value: str | None) -> str | None:
    return value if value is None else re.sub(r"[0-9]+(,[0-9]+)*", "", value)


def check_refusal(error: BadInput) -> None:
    for line in str(error).splitlines() or [""]:
        assert 10 < len(line) < 1500, line
        assert line.isprintable(), line
        line.encode()


class SafeLoaderWithoutDates(yaml.CSafeLoader):
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def has_text_keys(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and has_text_keys(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(has_text_keys, value))


def check_loaded(data: bytes) -> None:
    """Texts that PyYAML also loads have the same values, if all keys are text."""
    try:
        text = decode(data, "job")
        values = [document.value for document in load_documents(text, "job")]
    except BadInput as error:
        check_refusal(error)
        return
    with suppress(ValueError):
        json.loads(text)  # in which 1e5 is a number
        return
    with suppress(ValueError, LookupError, yaml.YAMLError):  # a key with an odd tag, whose text is taken here
        same = [value for value in yaml.load_all(text, SafeLoaderWithoutDates) if value is not None]
        assert not has_text_keys(same) or repr(same) == repr(values)  # by repr, for NaN


def check_read(paths: list[str], options: dict) -> None:
    try:
        job = read_job(paths, options)
    except BadInput as error:
        check_refusal(error)
    else:
        assert set(job.fields) <= set(Workload.model_fields)
        str(job).encode()


def check_patched(path: str, data: bytes, layout: Layout) -> bool:
    try:
        patch = patch_files([path], layout)
    except BadInput as error:
        check_refusal(error)
        return False
    pairs = list(zip_longest(scalars(data), scalars(patch.data)))
    assert all(without_counts(before) == without_counts(after) for before, after in pairs)
    return True


@pytest.mark.slow
def test_20_000_mutated_files_are_read_or_refused_and_patched_rightly(tmp_path: Path) -> None:
    def too_long(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} s of CPU time")

    for path in FILES:
        (tmp_path / path.name).write_bytes(path.read_bytes())  # those that others name
    path = tmp_path / "mutated"
    rng = random.Random(20261129)
    patched = 0
    signal.signal(signal.SIGPROF, too_long)
    for number in range(MANY):
        data = FILES[number % len(FILES)].read_bytes()
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = rng.choice(MUTATIONS)(data, rng)
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            check_loaded(data)
            check_read([str(path)], OPTIONS if number % 3 == 0 else {})
            patched += check_patched(str(path), data, Layout(rng.randrange(1, 9), rng.choice((1, 1, 2, 3))))
        except Exception as error:
            raise AssertionError(f"{number}, {FILES[number % len(FILES)].name}: {data[:3000]!r}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    assert patched > MANY / 100
