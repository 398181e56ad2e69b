"""A data folder from a snapshot: what is refused before anything changes, and what an interruption leaves."""

from __future__ import annotations

import fcntl
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from podlane.errors import Invalid, PodlaneError
from podlane.store import restore
from podlane.store.restore import Restoration

DATABASE = b"\0" * 4096
DIGEST = hashlib.sha256(DATABASE)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ASIDE = "member.before-restore-20260102T030405Z"


@pytest.fixture
def wanted(tmp_path: Path) -> Restoration:
    """Its tool makes a folder as etcd's does, with what it was told inside."""
    file = tmp_path / "x.db"
    file.write_bytes(DATABASE + DIGEST.digest())
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\nset -e\nmkdir -p "$5/member/snap"\necho "$@" > "$5/member/snap/db"\n')
    tool.chmod(0o755)
    return Restoration(file, tmp_path / "etcd", "s1", "https://a:2380", tool=str(tool))


def done(wanted: Restoration) -> Path | None:
    return restore.carry_out(wanted, restore.check(wanted), NOW)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_made(wanted: Restoration) -> None:
    assert done(wanted) is None
    (told,) = content(wanted.folder).values()
    assert told.split()[:4] == ["snapshot", "restore", str(wanted.file), "--data-dir"]
    assert told.split()[5:] == [
        *("--name", "s1", "--initial-advertise-peer-urls", "https://a:2380", "--initial-cluster", "s1=https://a:2380"),
        *("--initial-cluster-token", f"podlane-restored-{DIGEST.hexdigest()[:12]}"),
    ]
    assert sorted(content(wanted.folder)) == ["member/snap/db"]
    assert wanted.folder.stat().st_mode & 0o777 == 0o700


def test_all_members_of_one_file_are_one_cluster(wanted: Restoration) -> None:
    cluster = (("s1", "https://a:2380"), ("s2", "https://b:2380"))
    one = replace(wanted, cluster=cluster).command("d" * 64, Path("/x"))
    two = replace(wanted, cluster=cluster, name="s2", peer_url="https://b:2380").command("d" * 64, Path("/x"))
    assert one[-4:] == two[-4:]
    with pytest.raises(
        Invalid, match=r"--initial-cluster: expected s3=https://a:2380 among them, got s1=https://a:2380"
    ):
        replace(wanted, cluster=cluster, name="s3")


def member(wanted: Restoration, text: str = "the one before") -> None:
    (wanted.folder / "member" / "snap").mkdir(parents=True)
    (wanted.folder / "member" / "snap" / "db").write_text(text)


def test_a_member_is_moved_aside_if_that_is_said(wanted: Restoration) -> None:
    member(wanted)
    with pytest.raises(PodlaneError, match=r"it has a member's data; --force moves that aside$"):
        done(wanted)
    assert content(wanted.folder) == {"member/snap/db": "the one before"}
    assert done(replace(wanted, force=True)) == wanted.folder / ASIDE
    assert content(wanted.folder)[f"{ASIDE}/snap/db"] == "the one before"
    assert sorted(content(wanted.folder)) == [f"{ASIDE}/snap/db", "member/snap/db"]


def test_a_member_that_runs_is_left_alone(wanted: Restoration) -> None:
    member(wanted)
    with (wanted.folder / "member" / "snap" / "db").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as etcd does
        with pytest.raises(PodlaneError, match="an etcd runs on it; systemctl stop podlane-etcd"):
            done(replace(wanted, force=True))
    assert content(wanted.folder) == {"member/snap/db": "the one before"}


def test_a_folder_of_something_else_is_left_alone(wanted: Restoration) -> None:
    wanted.folder.mkdir()
    (wanted.folder / "hosts").write_text("mine")
    with pytest.raises(PodlaneError, match=r"it holds hosts; is that etcd's data folder\?"):
        done(replace(wanted, force=True))
    assert content(wanted.folder) == {"hosts": "mine"}


def test_a_damaged_snapshot_changes_nothing(wanted: Restoration) -> None:
    member(wanted)
    wanted.file.write_bytes(b"\1" + DATABASE[1:] + DIGEST.digest())
    with pytest.raises(PodlaneError, match="damaged"):
        done(replace(wanted, force=True))
    assert content(wanted.folder) == {"member/snap/db": "the one before"}


def test_a_tool_that_fails_leaves_what_was_there(wanted: Restoration) -> None:
    member(wanted)
    Path(wanted.tool).write_text('#!/bin/sh\nmkdir -p "$5"\necho "disk full" >&2\nexit 1\n')
    with pytest.raises(PodlaneError, match="disk full"):
        done(replace(wanted, force=True))
    assert content(wanted.folder) == {"member/snap/db": "the one before"}


def test_what_an_interruption_left_is_finished(wanted: Restoration) -> None:
    """Killed between moving the old one away and the new one in: there is no member then, and another try is free."""
    for left in (ASIDE, ".restoring-abc/new/member"):
        (wanted.folder / left).mkdir(parents=True)
    assert done(wanted) is None
    assert sorted(path.name for path in wanted.folder.iterdir()) == ["member", ASIDE]
