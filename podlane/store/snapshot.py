"""A file that holds a whole etcd: how it is written, and whether it is whole.

Owns: the form of a snapshot: etcd's database (a bolt file) and the 32 bytes of
its SHA-256 behind it. Invariant: a file under its final name was received to
its end and is what etcd sent; until then it has another name. It holds the
cluster's secrets, so it is its owner's alone.
Source: etcd's api/v3rpc/maintenance.go (Snapshot), etcdutl's snapshot restore.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError, StoreUnavailable

Chunk = tuple[bytes, int]
"""Some bytes, and how many are to come."""

Progress = Callable[[int, int], None]
"""Told the bytes written and the bytes there will be."""

_HASH = hashlib.sha256
_HASH_SIZE = 32
_PAGE = 512
"""Bolt files are of whole pages, of which this is the smallest: what is left over is the hash."""
_BLOCK = 1 << 20
SPARE = 256 << 20
"""Bytes that must be left on the disk: often etcd's own is the same one, and a full one stops it."""


@dataclass(frozen=True, slots=True)
class Saved:
    """`size` in bytes, the hash included; `digest` is the database's SHA-256 in hex."""

    path: Path
    size: int
    digest: str


def save(chunks: Iterable[Chunk], path: Path, progress: Progress | None = None) -> Saved:
    """Write what etcd sends and check it. Raises PodlaneError; then `path` is as it was."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp made it 0600
                for blob, remaining in chunks:
                    _check_room(file.fileno(), len(blob) + remaining)
                    file.write(blob)
                    if progress is not None:
                        progress(file.tell(), file.tell() + remaining)
                file.flush()
                os.fsync(file.fileno())
            try:
                size, digest = _check(part)
            except ValueError as error:
                raise StoreUnavailable(f"take a snapshot: what etcd sent is not whole: {error}") from error
            os.replace(part, path)
        except BaseException:  # also when interrupted: leave no half file, then go on failing
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
            raise
    except OSError as error:
        raise PodlaneError(f"write {path}: {error.strerror or error}") from error
    return Saved(path, size, digest)


def _check_room(descriptor: int, needed: int) -> None:
    """Raises OSError when the disk would be as good as full. It is asked for each chunk: others write as well."""
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < needed + SPARE:
        free = disk.f_bavail * disk.f_frsize >> 20
        raise OSError(errno.ENOSPC, f"{free} MiB free, needs {needed >> 20} and {SPARE >> 20} to spare")


def verify(path: Path) -> Saved:
    """Raises PodlaneError unless it is a whole snapshot."""
    try:
        return Saved(path, *_check(path))
    except OSError as error:
        raise PodlaneError(f"read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PodlaneError(f"check snapshot {path}: {error}") from error


def _check(path: Path) -> tuple[int, str]:
    """(size, SHA-256 of the database). Raises ValueError, OSError."""
    size = path.stat().st_size
    if size % _PAGE != _HASH_SIZE:
        raise ValueError("no SHA-256 behind the database: a part of a snapshot, or a copy of a member's own file")
    found = _HASH()
    left = size - _HASH_SIZE
    with path.open("rb") as file:
        while left and (block := file.read(min(_BLOCK, left))):
            found.update(block)
            left -= len(block)
        expected = file.read()
    if found.digest() != expected:
        raise ValueError(f"its SHA-256 is {found.hexdigest()}, not {expected.hex()}: damaged")
    return size, found.hexdigest()
