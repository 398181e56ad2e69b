"""A folder of dated snapshots: their names, and which of them stay.

Owns: the names (`etcd-SERVER-20261129T014218Z.db`). Invariant: what is not named so, for the
server in question, is left alone, so that several servers may share a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from podlane.errors import PodlaneError

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(?P<part>\.)?etcd-(?P<server>.+)-(?P<time>\d{8}T\d{6}Z)\.db(?(part)\..+)", re.ASCII)
"""Of a snapshot, or of a part of one (podlane.store.snapshot.save)."""

_ABANDONED = timedelta(days=1)
"""A part is nobody's any more: its process was killed, or the power went."""


@dataclass(frozen=True, slots=True)
class Dated:
    """`size` in bytes. `part`: not received to its end, or not yet."""

    path: Path
    server: str
    taken: datetime
    size: int = 0
    part: bool = False


def name_of(server: str, now: datetime) -> str:
    return f"etcd-{server}-{now:{_TIME}}.db"


def dated(folder: Path) -> list[Dated]:
    """All in the folder, the newest first. Raises PodlaneError."""
    try:
        found = [
            Dated(path, match["server"], _parsed(match["time"]), path.stat().st_size, bool(match["part"]))
            for path in folder.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
    except OSError as error:
        raise PodlaneError(f"list {folder}: {error.strerror}") from error
    return sorted(found, key=lambda each: each.taken, reverse=True)


def whole(folder: Path) -> list[Dated]:
    """Those that were received to their end, the newest first. Raises PodlaneError."""
    return [each for each in dated(folder) if not each.part]


def outdated(snapshots: Iterable[Dated], server: str, keep: int, now: datetime) -> list[Dated]:
    """All of this server's but the newest `keep`, and parts that nobody goes on with. Pure."""
    own = sorted((each for each in snapshots if each.server == server), key=lambda each: each.taken, reverse=True)
    parts = [each for each in own if each.part and now - each.taken > _ABANDONED]
    return [*[each for each in own if not each.part][keep:], *parts]


def _parsed(text: str) -> datetime:
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
