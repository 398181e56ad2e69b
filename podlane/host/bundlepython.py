"""A Python for hosts that have none: this machine's, made to run from any folder.

Owns: which parts of it go along. Invariants: nothing of the C library does, for the
host's own must be used; every other shared library that a module needs lies beside
it and is found by a path relative to the file (RUNPATH $ORIGIN), never by an
environment variable that the host's own programs would inherit; compiled modules
are checked against nothing, so their times do not matter.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from podlane.errors import UsageError
from podlane.runtime.command import run

PROGRAM = Path("/usr/bin/python3.11")
_LIBRARY = Path("/usr/lib/python3.11")
_LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "config-*", "__pycache__")
_OF_THE_C_LIBRARY = re.compile(r"(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|nsl|anl))\.so\.\d+")
_TIMEOUT = 120.0


def check() -> None:
    """Raises UsageError where it cannot be had."""
    if not PROGRAM.is_file() or not _LIBRARY.is_dir():
        raise UsageError(f"--with-python: {PROGRAM} is not on this machine; it works on Debian 12")
    if shutil.which("patchelf") is None:
        raise UsageError("--with-python: patchelf is missing; install it (apt-get install patchelf)")


def copy_python(target: Path, say: Callable[[str], None]) -> None:
    """After `check`."""
    library = target / "lib" / _LIBRARY.name
    (target / "bin").mkdir(parents=True)
    shutil.copy(PROGRAM, target / "bin" / PROGRAM.name)
    (target / "bin" / "python3").symlink_to(PROGRAM.name)
    shutil.copytree(_LIBRARY, library, ignore=shutil.ignore_patterns(*_LEFT_OUT), ignore_dangling_symlinks=True)
    binaries = [target / "bin" / PROGRAM.name, *sorted((library / "lib-dynload").glob("*.so"))]
    for each in (found for binary in binaries for found in _needs(binary)):
        shutil.copy(each, target / "lib" / each.name)
    shared = sorted((target / "lib").glob("*.so*"))
    for path, origin in (
        *((binary, "$ORIGIN/../lib" if binary.parent.name == "bin" else "$ORIGIN/../..") for binary in binaries),
        *((path, "$ORIGIN") for path in shared),
    ):
        path.chmod(0o755)
        run(["patchelf", "--set-rpath", origin, str(path)], timeout=_TIMEOUT)
    python = str(target / "bin" / "python3")
    compiling = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(target), str(library))
    run([python, *compiling], timeout=_TIMEOUT, check=False)  # what does not compile is not imported either
    version = run([python, "--version"], timeout=_TIMEOUT).stdout.strip()
    say(f"{version} with {len(shared)} libraries, for hosts without")


def _needs(binary: Path) -> Iterator[Path]:
    """The shared libraries it is linked with, where they are here, but those of the C library."""
    for line in run(["ldd", str(binary)], timeout=_TIMEOUT, check=False).stdout.splitlines():
        found = re.match(r"\s*(\S+) => (/\S+)", line)
        if found is not None and not _OF_THE_C_LIBRARY.fullmatch(found[1]):
            yield Path(found[2]).with_name(found[1])
