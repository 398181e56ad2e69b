"""A snapshot is a database and its SHA-256: whole under its name, or not there at all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from podlane.cli.etcdstatus import last_snapshot
from podlane.errors import PodlaneError, StoreUnavailable
from podlane.store import snapshot, snapshots

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


def test_a_disk_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(PodlaneError, match=r"^write .*/x.db: \d+ MiB free, needs 1099511627776 and 256 to spare$"):
        snapshot.save(iter([(b"x", 1 << 60)]), tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


NOW = datetime(2026, 11, 29, 6, 0, tzinfo=UTC)
FOLDER = (
    "etcd-s1-20261129T014218Z.db",
    "etcd-s1-20261128T014218Z.db",
    "etcd-s1-20261127T014218Z.db",
    "etcd-s1.example-20261101T014218Z.db",
    "etcd-s2-20261029T014218Z.db",
    ".etcd-s1-20261128T054218Z.db.x7b_2ab1",
    ".etcd-s1-20261129T054218Z.db.abcdefgh",
    "before-upgrade.db",
    "etcd-s1-20261126T014218Z.db.gpg",
)


def test_of_a_servers_snapshots_the_newest_are_kept_and_no_others_touched(tmp_path: Path) -> None:
    for name in FOLDER:
        (tmp_path / name).write_text("x")

    def gone(server: str, keep: int) -> list[str]:
        return [each.path.name for each in snapshots.outdated(snapshots.dated(tmp_path), server, keep, NOW)]

    abandoned = ".etcd-s1-20261128T054218Z.db.x7b_2ab1"
    assert gone("s1", 2) == ["etcd-s1-20261127T014218Z.db", abandoned]
    assert gone("s1", 3) == [abandoned]
    assert gone("s2", 1) == gone("s1.example", 1) == gone("s3", 1) == []
    assert snapshots.name_of("s1", NOW) == "etcd-s1-20261129T060000Z.db"


def test_what_is_said_of_the_newest(tmp_path: Path) -> None:
    def said(found: list[snapshots.Dated]) -> str:
        return last_snapshot(found, tmp_path, NOW).replace(f"{tmp_path}", "/b")

    look = "look: systemctl status podlane-snapshot.timer podlane-snapshot"
    assert said([]) == f"none in /b yet; {look}"
    path = tmp_path / "etcd-s1-20261129T014218Z.db"
    taken = (NOW - timedelta(hours=age) for age in itertools.count(3, 40))
    assert said([snapshots.Dated(path, "s1", next(taken), 3 << 20)]) == f"3h ago, /b/{path.name} (3.0 MiB)"
    late = said([snapshots.Dated(path, "s1", next(taken), 3 << 20)])
    assert late == f"43h ago, /b/{path.name} (3.0 MiB); there should be one a day, {look}"
