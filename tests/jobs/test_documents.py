"""YAML and JSON are loaded within limits; other texts are refused with a message that names the line."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from yaml_bombs import BOMBS

from autoconf.errors import BadInput
from autoconf.jobs.importers.documents import (
    MAX_BYTES,
    MAX_VALUES,
    NotDocuments,
    child,
    decode,
    load_documents,
    read_text,
)

JOBS = Path(__file__).parents[1] / "data" / "job_files"


def value_of(text: str) -> object:
    (document,) = load_documents(text, "job")
    return document.value


@pytest.mark.parametrize("name", sorted(path.name for path in JOBS.glob("*.yaml")))
def test_values_are_those_of_the_safe_loader(name: str) -> None:
    text = (JOBS / name).read_text()
    assert [document.value for document in load_documents(text, name)] == list(yaml.safe_load_all(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{on: 1, 8: 2, null: 3, 1.5: 4}", {"on": 1, "8": 2, "null": 3, "1.5": 4}),
        ("day: 2024-99-99", {"day": "2024-99-99"}),
        ("a: !!str 8\nb: !!int '8'", {"a": "8", "b": 8}),
        ("a: &a {x: 1, y: 2}\nb: {x: 3, <<: *a}", {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}),
        ('{\n\t"a":\t[1e-5, true]}', {"a": [1e-5, True]}),
        ('{"\\ud83d\\ude00": "\\/"}', {"😀": "/"}),
        (f'{{"{"k" * 5000}": 1}}', {"k" * 5000: 1}),
        (f"{'k' * 1000}: {'v' * 5000}", {"k" * 1000: "v" * 5000}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values_are_read_as_they_are_written(text: str, value: object) -> None:
    assert value_of(text) == value


def test_json_has_no_half_of_a_surrogate_pair() -> None:
    with pytest.raises(BadInput, match="job: a text has half of a surrogate pair"):
        load_documents('{"a": "\\ud800"}', "job")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 1\n", "job:3: the key 'a' is repeated"),
        ('{"b": {\n "a": 1,\n\t"a": 2}}', "job:3: the key 'a' is repeated"),
        ("a: &a [*a]", "job:1: the alias *a is inside of what it refers to"),
        ("a: *b", "job:1: the alias *b has no anchor"),
        ("a: &b 1\n---\nb: *b", "job:3: the alias *b has no anchor"),
        ("a: 1\nb: !!bool foo", "job:2: 'foo' is not a value of the tag !!bool"),
        ("!!int ''", "job:1: '' is not a value of the tag !!int"),
        ("a: !!python/object:os.x b", "job:1: the tag 'tag:yaml.org,2002:python/object:os.x' is not read"),
        ("!!timestamp 2024-01-01", "job:1: the tag 'tag:yaml.org,2002:timestamp' is not read"),
        ("!!binary aGk=", "job:1: the tag 'tag:yaml.org,2002:binary' is not read"),
        ("!!map [a]", "job:1: the tag 'tag:yaml.org,2002:map' is not read"),
        ("!mine {a: 1}", "job:1: the tag '!mine' is not read"),
        ("\n? [a]\n: b", "job:2: a key must be text"),
        ("a: 1\n<<: 3", "job:2: cannot merge: expected a mapping or list of mappings for merging, but found scalar"),
        ("a: [", "job:2: not YAML: did not find expected node content"),
        ("a: \0", "job: not YAML: it has a character that YAML does not allow"),
        ("a: \ud800", "job: not YAML: it has a character that YAML does not allow"),
        (f"a: {'9' * 5000}", "job:1: a number of 5,000 characters; at most 100 are read"),
        (f'{{"a": {"9" * 5000}}}', "job:1: a number of 5,000 characters; at most 100 are read"),
    ],
)
def test_an_unloadable_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        load_documents(text, "job")
    assert str(refused.value) == message


def test_an_alias_has_the_position_of_the_alias() -> None:
    text = "a: &n 4\nb: *n\n"
    (document,) = load_documents(text, "job")
    spans = [child(document.node, key) for key in "ab"]
    assert [text[node.start_mark.index : node.end_mark.index] for node in spans] == ["&n 4", "*n"]
    assert (document.line("b"), document.line("b", "c"), document.line("c")) == (2, None, None)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="job:2: not UTF-8 text: byte 0xff"):
        decode(b"a: 1\nb: \xff", "job")
    assert decode("\ufeffa: ü".encode(), "job") == "a: ü"
    (tmp_path / "large").write_bytes(b"#" * (MAX_BYTES + 1))
    for path, message in ((str(tmp_path / "large"), "larger than 1048576 bytes"), ("a" * 5000, "File name too long")):
        with pytest.raises(BadInput, match=f"cannot read it: {message}"):
            read_text(path)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_defused_within_two_seconds_and_300_mb(bomb: str) -> None:
    """Run in a process with limits on CPU time and memory."""
    code = (
        "import sys; from autoconf.errors import BadInput; from autoconf.jobs.importers.documents import *\n"
        "try: print('loaded', len(load_documents(sys.stdin.read(), 'job')))\n"
        "except BadInput as error: print('refused', error)"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))

    done = subprocess.run(
        [sys.executable, "-c", code], input=BOMBS[bomb], capture_output=True, text=True, preexec_fn=limited
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("loaded", "refused job")) and len(done.stdout) < 200


def test_a_file_just_within_the_limits_is_loaded() -> None:
    assert len(value_of("\n".join(f"k{i}: {i}" for i in range(MAX_VALUES // 2 - 1)))) == MAX_VALUES // 2 - 1
    with pytest.raises(BadInput, match="more than 20,000 values"):
        value_of("\n".join(f"k{i}: {i}" for i in range(MAX_VALUES // 2)))
    assert value_of("[" * 99 + "x" + "]" * 99)
    with pytest.raises(NotDocuments, match="did not find expected"):
        value_of("[" * 99)
