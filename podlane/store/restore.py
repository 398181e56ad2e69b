"""A member's data folder from a snapshot.

Owns: what is checked before, and the order of the steps. Invariants: the
snapshot is whole, and no etcd runs on the folder, before anything is changed;
the folder has the old member, none, or the new one, never a mixture, whatever
is interrupted, and doing it again finishes it; the old one is moved aside and
not removed. etcd's own tool does the work.

The new cluster gets an id of its own, from the snapshot's hash: by it every
mirror notices that the store went back, even when its revision has overtaken
what the mirror saw last (podlane.store.mirror, docs/adr/0001). All members that
are restored from one file get the same.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from podlane.errors import FieldError, Invalid, PodlaneError
from podlane.runtime.command import run
from podlane.store import snapshot

TOOLS = ("etcdutl", "etcdctl")
"""In this order: etcd 3.6 has the command in the first only, 3.4 in the second."""

TIMEOUT = 3600.0
_MEMBER = "member"
_ASIDE = "member.before-restore-"
_PART = ".restoring-"


@dataclass(frozen=True, slots=True)
class Restoration:
    """`cluster` are all members of the new cluster (name, peer URL); by default this one alone. Raises Invalid."""

    file: Path
    folder: Path
    name: str
    peer_url: str
    cluster: tuple[tuple[str, str], ...] = ()
    force: bool = False
    tool: str = ""

    def __post_init__(self) -> None:
        if (self.name, self.peer_url) not in self.members:
            listed = ",".join(f"{name}={url}" for name, url in self.cluster)
            needed = f"expected {self.name}={self.peer_url} among them, got {listed}"
            raise Invalid("restore", [FieldError("--initial-cluster", needed)])

    @property
    def members(self) -> tuple[tuple[str, str], ...]:
        return self.cluster or ((self.name, self.peer_url),)

    def command(self, digest: str, into: Path) -> list[str]:
        """What makes the folder `into`, as an operator would type it."""
        return [
            *(self.tool, "snapshot", "restore", str(self.file)),
            *("--data-dir", str(into), "--name", self.name),
            *("--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", ",".join(f"{name}={url}" for name, url in self.members)),
            *("--initial-cluster-token", f"podlane-restored-{digest[:12]}"),
        ]


def check(wanted: Restoration) -> snapshot.Saved:
    """That it can be done: a whole snapshot, the tool, a folder nobody uses. Raises PodlaneError; changes nothing."""
    saved = snapshot.verify(wanted.file)
    folder = wanted.folder
    try:
        entries = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise PodlaneError(f"restore into {folder}: {error.strerror}") from error
    foreign = [name for name in entries if name != _MEMBER and not name.startswith((_ASIDE, _PART))]
    if foreign:
        raise PodlaneError(f"restore into {folder}: it holds {', '.join(foreign[:3])}; is that etcd's data folder?")
    if _MEMBER in entries:
        if not wanted.force:
            raise PodlaneError(f"restore into {folder}: it has a member's data; --force moves that aside")
        _check_unused(folder)
    return saved


def carry_out(wanted: Restoration, saved: snapshot.Saved, now: datetime) -> Path | None:
    """Put the member in place; returns where the old one went. `check` comes before. Raises PodlaneError."""
    folder = wanted.folder
    try:
        _make_folder(folder)
        for left_over in folder.glob(f"{_PART}*"):
            shutil.rmtree(left_over)
        with _part(folder) as part:
            new = part / "new"
            run(wanted.command(saved.digest, new), timeout=TIMEOUT)
            _give(new, like=folder)
            aside = _move_aside(folder, now)
            os.rename(new / _MEMBER, folder / _MEMBER)
            return aside
    except OSError as error:
        raise PodlaneError(f"restore into {folder}: {error.strerror or error}: {error.filename}") from error


def find_tool() -> str:
    """The program that restores: one beside this Podlane's own, else of the host. Raises PodlaneError."""
    beside = str(Path(sys.executable).parent)
    for path in (beside, None):
        for tool in TOOLS:
            if found := shutil.which(tool, path=path):
                return found
    raise PodlaneError(f"restore: neither {' nor '.join(TOOLS)} is on this host; they come with etcd or etcd-client")


def _check_unused(folder: Path) -> None:
    """Raises PodlaneError while an etcd has the database open: it holds a lock (bbolt's flock)."""
    database = folder / _MEMBER / "snap" / "db"
    try:
        with database.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise PodlaneError(f"restore into {folder}: an etcd runs on it; systemctl stop podlane-etcd") from None
    except OSError as error:
        raise PodlaneError(f"restore into {folder}: read {database}: {error.strerror}") from error


def _make_folder(folder: Path) -> None:
    """As etcd wants it; like the folder it is in, which systemd made for etcd's user."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        _chown(folder, like=folder.parent)


@contextmanager
def _part(folder: Path) -> Iterator[Path]:
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=folder))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _give(tree: Path, *, like: Path) -> None:
    for root, folders, files in os.walk(tree):
        for name in (*folders, *files):
            _chown(Path(root, name), like=like)


def _chown(path: Path, *, like: Path) -> None:
    owner = like.stat()
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _move_aside(folder: Path, now: datetime) -> Path | None:
    if not (folder / _MEMBER).exists():
        return None
    aside = folder / f"{_ASIDE}{now:%Y%m%dT%H%M%SZ}"
    os.rename(folder / _MEMBER, aside)
    return aside
