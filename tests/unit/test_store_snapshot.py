"""A snapshot is a database and its SHA-256: whole under its name, or not there at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from podlane.cli.etcdsnapshot import outdated
from podlane.errors import PodlaneError, StoreUnavailable
from podlane.store import snapshot

DATABASE = bytes(range(256)) * 64
WHOLE = DATABASE + hashlib.sha256(DATABASE).digest()


def sent(data: bytes, size: int = 5000) -> Iterator[snapshot.Chunk]:
    for start in range(0, len(data), size):
        yield data[start : start + size], max(0, len(data) - start - size)


def test_what_is_sent_is_saved_for_its_owner_alone(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    saved = snapshot.save(sent(WHOLE), tmp_path / "x.db", lambda done, total: told.append((done, total)))
    assert (tmp_path / "x.db").read_bytes() == WHOLE
    assert (tmp_path / "x.db").stat().st_mode & 0o777 == 0o600
    assert saved == snapshot.verify(tmp_path / "x.db")
    assert (saved.size, saved.digest) == (len(WHOLE), hashlib.sha256(DATABASE).hexdigest())
    assert told == [(5000, 16416), (10000, 16416), (15000, 16416), (16416, 16416)]


def broken() -> Iterator[snapshot.Chunk]:
    yield WHOLE[:9000], 1
    raise StoreUnavailable("stream ended")


@pytest.mark.parametrize(
    "chunks",
    [sent(WHOLE[:-1]), sent(WHOLE[:-32]), sent(b"\1" + WHOLE[1:]), sent(b""), broken()],
    ids=["short", "no hash", "damaged", "empty", "cut off"],
)
def test_what_is_not_whole_leaves_the_file_as_it_was(tmp_path: Path, chunks: Iterator[snapshot.Chunk]) -> None:
    (tmp_path / "x.db").write_text("the one before")
    with pytest.raises(StoreUnavailable):
        snapshot.save(chunks, tmp_path / "x.db")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.db": "the one before"}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(PodlaneError, match=r"^write .*/none/x.db: No such file or directory$"):
        snapshot.save(sent(WHOLE), tmp_path / "none" / "x.db")


def test_what_is_no_snapshot_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATABASE)
    with pytest.raises(PodlaneError, match="no SHA-256 behind the database: a part of a snapshot, or a copy"):
        snapshot.verify(tmp_path / "x")
    with pytest.raises(PodlaneError, match=r"^read .*/y: No such file"):
        snapshot.verify(tmp_path / "y")


def test_the_newest_dated_ones_are_kept() -> None:
    names = ["etcd-20250102T000000Z.db", "etcd-20250101T000000Z.db", "etcd-20250103T000000Z.db"]
    assert outdated(names, 2) == ["etcd-20250101T000000Z.db"]
    assert outdated(names, 3) == []
