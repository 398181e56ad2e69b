"""The mount calls of the kernel that volumes need, without a process for each.

Owns: tmpfs, bind and unmount, and opening a path that may not leave a folder.
Linux only, and only with CAP_SYS_ADMIN. Source: mount(2), umount2(2), openat2(2),
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC = 2, 4, 4096, 16384
_MNT_DETACH = 2
_SYS_OPENAT2 = 437  # on every architecture
_RESOLVE_BENEATH, _RESOLVE_NO_MAGICLINKS = 0x08, 0x02
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def tmpfs(path: str, *, mode: int, size: int = 0) -> None:
    """Mount an empty file system in memory of at most `size` bytes (0: half of the machine's). Raises OSError."""
    options = f"mode={mode:04o}" + (f",size={size}" if size else "")
    _mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def bind(source: str, target: str) -> None:
    """Make a file or folder, and what is mounted below it, appear at `target` too. Raises OSError."""
    _mount(source, target, "", _MS_BIND | _MS_REC, "")


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    words = [os.fsencode(text) if text else None for text in (source, target, kind)]
    if _libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options) if options else None) != 0:
        raise _error(target)


def unmount(path: str) -> None:
    """Detach what is mounted last at `path`; who has it open keeps it. No error when nothing is. Raises OSError."""
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() not in {errno.EINVAL, errno.ENOENT}:
        raise _error(path)


def mount_points(folder: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Where something is mounted at or below a folder, the last mounted first; links in its path are followed."""
    folder = os.path.realpath(folder)
    text = mountinfo.read_bytes().decode(errors="surrogateescape")
    points = [_unescaped(line.split(" ")[4]) for line in text.split("\n") if line]
    return [point for point in reversed(points) if point == folder or point.startswith(f"{folder}/")]


def _unescaped(text: str) -> str:
    for char in " \t\n\\":
        text = text.replace(f"\\{ord(char):03o}", char)
    return text


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Open a path that must not lead out of the folder (an open one), neither by `..` nor by a link.

    Raises OSError: EXDEV when it would.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    opened: int = _libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if opened < 0:
        raise _error(path)
    return opened


def _error(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
