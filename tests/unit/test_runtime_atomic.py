from __future__ import annotations

import os
from pathlib import Path

import pytest

from podlane.errors import PodlaneError
from podlane.runtime.atomic import write_atomic

pytestmark = pytest.mark.unit


def test_it_makes_the_folder_and_sets_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    target = tmp_path / "run" / "flannel" / "subnet.env"
    previous = os.umask(0o077)
    try:
        write_atomic(target, "A=1\n")
        write_atomic(tmp_path / "secret", b"\xff\x00", mode=0o600)
    finally:
        os.umask(previous)
    assert target.read_text() == "A=1\n"
    assert target.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "secret").read_bytes() == b"\xff\x00"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_reader_of_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, "old")
    with target.open() as reader:
        write_atomic(target, "new, and longer")
        assert reader.read() == "old"
    assert target.read_text() == "new, and longer"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").write_text("kept")
    with pytest.raises(PodlaneError, match=rf"^write {target}: "):
        write_atomic(target, "a file cannot replace a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert (target / "kept").read_text() == "kept"
