"""Files and folders are written completely or not at all, and errors name a file."""

from __future__ import annotations

import os
import stat

import pytest

from autoconf.errors import BadInput
from autoconf.files import atomic_file, atomic_folder, opened, remove_unfinished, temporary


def test_a_file_appears_complete_and_keeps_the_mode_of_the_one_that_it_replaces(tmp_path):
    path = tmp_path / "answers.csv"
    with atomic_file(path, mode=0o600) as stream:
        stream.write(b"first")
        assert not path.exists()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"first", 0o600)
    path.chmod(0o640)
    with atomic_file(path) as stream:
        stream.write(b"second")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"second", 0o640)
    assert os.listdir(tmp_path) == ["answers.csv"]


def test_a_file_whose_writing_fails_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("first")
    with pytest.raises(RuntimeError, match="stopped"), atomic_file(path) as stream:
        stream.write(b"half")
        raise RuntimeError("stopped")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["answers.csv"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_replaces_another_one_or_gives_way_to_it(tmp_path, replace):
    folder = tmp_path / "more" / "models"
    for content in ("first", "second"):
        with atomic_folder(folder, replace=replace) as scratch:
            (scratch / "card").write_text(content)
    assert (folder / "card").read_text() == ("second" if replace else "first")
    assert os.listdir(folder.parent) == ["models"]


def test_a_folder_that_is_not_completed_vanishes(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"), atomic_folder(tmp_path / "models", mode=0o700) as scratch:
        (scratch / "card").write_text("half")
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        raise RuntimeError("stopped")
    assert os.listdir(tmp_path) == []


def test_unfinished_files_can_be_removed_when_a_process_ends(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    with atomic_folder(tmp_path / "models") as scratch, temporary(tmp_path / "file") as file:
        (scratch / "card").write_text("half")
        file.write_text("half")
        remove_unfinished()
        assert os.listdir(tmp_path) == ["kept"]
        scratch.mkdir()
    remove_unfinished()
    assert sorted(os.listdir(tmp_path)) == ["kept", "models"]


def test_a_path_that_cannot_be_written_to_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "models"
    for opening in (lambda: atomic_file(target), lambda: atomic_folder(target)):
        with (
            pytest.raises(BadInput, match=r"^file/models: cannot write to it: Not a directory$"),
            opened("file/models", opening, "to it"),
        ):
            raise AssertionError("opened")
    with pytest.raises(OSError, match="full"), opened("x", lambda: temporary(tmp_path / "x")):
        raise OSError("full")
