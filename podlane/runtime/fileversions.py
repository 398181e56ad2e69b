"""Whether files are others than they were: for what is read again when it was replaced.

Owns: `FileVersions`. Why not inotify: who asks has something to do at that moment
anyway (a connection to make), and three stat(2) cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class FileVersions:
    """Of these paths, as they are now; one that is not there yet is a version too."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether one was replaced, written, made or removed since it was asked last."""
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_version(path) for path in self._paths)


def _version(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
