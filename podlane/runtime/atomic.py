"""Files that are there whole or not at all.

Owns: `write_atomic`. Invariant: a reader, also one after a power cut, sees the
old content or the new, never a part. rename(2) is atomic within a file system,
so the temporary file lies in the same folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from podlane.errors import PodlaneError


def write_atomic(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o644) -> None:
    """Replace the file's content; makes the folder if it is missing. Raises PodlaneError."""
    target = Path(path)
    content = data.encode() if isinstance(data, str) else data
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:  # also when interrupted: leave no temporary file, then go on failing
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise PodlaneError(f"write {target}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
