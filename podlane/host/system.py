"""The host as `install` and its kind touch it: files, links, programs.

Owns: the interface, and the real one. Invariants: a file is there whole or not at
all; removing what is not there is no error; a path is always absolute, and below
`root` (the tests' seam). fake.py has its twin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from podlane.errors import PodlaneError
from podlane.runtime import command
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import Completed


@dataclass(frozen=True, slots=True)
class Found:
    """What is at a path: a `file` with content, a `folder`, or a `link` to `target`."""

    kind: str
    content: bytes = b""
    target: str = ""
    mode: int = 0


class System(Protocol):
    """Methods raise PodlaneError when the host refuses."""

    def look(self, path: str) -> Found | None: ...

    def names(self, folder: str) -> tuple[str, ...]:
        """What is in a folder, sorted; nothing when it is not there."""

    def write(self, path: str, content: bytes, mode: int) -> None: ...

    def make_folder(self, path: str, mode: int) -> None: ...

    def link(self, path: str, target: str) -> None:
        """Make the link, or lead it elsewhere, at once."""

    def remove(self, path: str) -> None:
        """A file, a link, or a folder with all that is in it."""

    def run(self, argv: Sequence[str], *, timeout: float, stdin: str = "", check: bool = True) -> Completed: ...


class RealSystem:
    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        """The last part is not followed; those before may be links, also to what is still to be made."""
        at = self._root / path.lstrip("/")
        return at.parent.resolve() / at.name

    def look(self, path: str) -> Found | None:
        at = self._at(path)
        try:
            if at.is_symlink():
                return Found("link", target=os.readlink(at))
            mode = at.stat().st_mode & 0o7777
            if at.is_dir():
                return Found("folder", mode=mode)
            return Found("file", at.read_bytes(), mode=mode)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise PodlaneError(f"read {path}: {error.strerror}") from error

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(self._at(folder))))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise PodlaneError(f"list {folder}: {error.strerror}") from error

    def write(self, path: str, content: bytes, mode: int) -> None:
        write_atomic(self._at(path), content, mode)

    def make_folder(self, path: str, mode: int) -> None:
        try:
            self._at(path).mkdir(parents=True)
            self._at(path).chmod(mode)
        except OSError as error:
            raise PodlaneError(f"make folder {path}: {error.strerror}") from error

    def link(self, path: str, target: str) -> None:
        at = self._at(path)
        new = at.with_name(f".{at.name}.new")
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            os.replace(new, at)
        except OSError as error:
            raise PodlaneError(f"link {path} to {target}: {error.strerror}") from error

    def remove(self, path: str) -> None:
        at = self._at(path)
        try:
            if at.is_dir() and not at.is_symlink():
                shutil.rmtree(at)
            else:
                at.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise PodlaneError(f"remove {path}: {error.strerror}") from error

    def run(self, argv: Sequence[str], *, timeout: float, stdin: str = "", check: bool = True) -> Completed:
        return command.run(argv, timeout=timeout, input=stdin or None, check=check)
