"""Working in another network namespace for a while, on the calling thread.

Owns: setns(2). Invariant: `inside` gives the thread back where it was, whatever
happens in the block; other threads never notice, because the kernel keeps the
network namespace per thread. A socket stays in the namespace it was made in, so
it is enough to make it inside, and use it anywhere. Source: setns(2),
network_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podlane.errors import PodlaneError

CLONE_NEWNET = 0x40000000
OWN = Path("/proc/thread-self/ns/net")
"""The network namespace of the thread that opens it."""

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceGone(PodlaneError):
    """There is no such namespace (any more)."""


def of_process(pid: int) -> Path:
    """The path of a process's network namespace."""
    return Path(f"/proc/{pid}/ns/net")


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """A descriptor of the namespace at `path`, which keeps it from going away. Raises NamespaceGone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGone(f"enter namespace {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_own(descriptor: int) -> bool:
    """Whether an open namespace is the calling thread's own."""
    own, other = OWN.stat(), os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)


def enter(path: Path | str) -> None:
    """Move the calling thread, and threads it starts from now on, into a namespace for good. Raises PodlaneError."""
    with opened(path) as descriptor:
        _set(descriptor, str(path))


def leave_for_a_new_one() -> None:
    """Move the calling thread into a fresh namespace, which is gone when nothing is in it any more."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise PodlaneError(f"make network namespace: {os.strerror(ctypes.get_errno())}")


@contextmanager
def inside(namespace: Path | str | int) -> Iterator[None]:
    """Run the block's thread in a namespace, given by its path or an open descriptor. Raises PodlaneError."""
    with opened(OWN) as home:
        if isinstance(namespace, int):
            _set(namespace, "by descriptor")
        else:
            enter(namespace)
        try:
            yield
        finally:
            _set(home, "of origin")


def _set(descriptor: int, name: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise PodlaneError(f"enter namespace {name}: {os.strerror(ctypes.get_errno())}")
