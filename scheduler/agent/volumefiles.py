"""Volumes on the node's file system: folders, files in memory, parts bound for a container.

Owns: what volumes.py asks for, below `pods/UID/volumes` and `pods/UID/subpaths`.
Invariants: everything may be done twice, and goes on where it was interrupted;
the files of a config map, secret or downward API change all at once: a reader
finds the old ones or the new ones behind `..data`; a part of a volume leads
nowhere but into it, whatever links its containers make meanwhile, because what
is bound is what was opened; nothing is deleted while something is mounted
below it, since that may be a folder of the node. Source: the kubelet's
AtomicWriter (pkg/volume/util), its hostPath type checker and safe subpath
(k8s.io/mount-utils, pkg/volume/util/subpath), openat2(2).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from podlane.errors import PodlaneError
from scheduler.agent import mounts, selinux
from scheduler.agent.volumes import EmptyDir, Files, HostPath, SubPath, VolumeSetUp

_DATA, _NEW = "..data", "..data_tmp"
_KINDS = {
    "Directory": (stat.S_ISDIR, "a directory"),
    "File": (stat.S_ISREG, "a file"),
    "Socket": (stat.S_ISSOCK, "a socket file"),
    "CharDevice": (stat.S_ISCHR, "a character device"),
    "BlockDevice": (stat.S_ISBLK, "a block device"),
}


class MountFailed(PodlaneError):
    """A volume cannot be set up on this node; the text is the kubelet's."""


def set_up(volume: VolumeSetUp) -> None:
    """Make a volume be as it should. Raises MountFailed."""
    try:
        if isinstance(volume, EmptyDir):
            _make_empty(volume)
        elif isinstance(volume, HostPath):
            _check_host_path(volume)
        else:
            _write(volume)
    except OSError as error:
        cause = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        raise MountFailed(f'MountVolume.SetUp failed for volume "{volume.name}" : {cause}') from error


def _make_empty(volume: EmptyDir) -> None:
    path = Path(volume.path)
    path.mkdir(parents=True, exist_ok=True)
    if volume.memory:
        _mount(volume.path, mode=0o777, size=volume.size)
    if volume.group is None:
        path.chmod(0o777)
    else:
        os.chown(path, -1, volume.group)
        path.chmod(0o2777)


def _mount(path: str, *, mode: int, size: int = 0) -> None:
    if not mounts.mount_points(path):
        mounts.tmpfs(path, mode=mode, size=size)
    selinux.share(path)


def _check_host_path(volume: HostPath) -> None:
    path = Path(volume.path)
    if volume.kind in {"", "DirectoryOrCreate"}:
        if volume.kind or not os.path.lexists(path):
            path.mkdir(0o755, parents=True, exist_ok=True)
    elif volume.kind == "FileOrCreate":
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
    if not volume.kind:
        return
    is_kind, words = _KINDS[volume.kind.removesuffix("OrCreate")]
    try:
        fits = is_kind(path.stat().st_mode)
    except FileNotFoundError:
        fits = False
    if not fits:
        text = f"hostPath type check failed: {volume.path} is not {words}"
        raise MountFailed(f'MountVolume.SetUp failed for volume "{volume.name}" : {text}')


# --- files that change all at once -------------------------------------------------------------


def _write(volume: Files) -> None:
    folder = Path(volume.path)
    folder.mkdir(parents=True, exist_ok=True)
    if volume.memory:
        _mount(volume.path, mode=0o755)
    current = f"..{_digest(volume)}"
    data = folder / _DATA
    old = os.readlink(data) if data.is_symlink() else ""
    if old != current:
        _write_all(folder / current, volume)
        _link(folder / _NEW, current)
        os.rename(folder / _NEW, data)
    names = {file.path.split("/")[0] for file in volume.files}
    for name in names:
        if not (folder / name).is_symlink():
            _link(folder / name, f"{_DATA}/{name}")
    for entry in folder.iterdir():
        if entry.name in names or entry.name in {_DATA, current}:
            continue
        if entry.is_symlink():
            entry.unlink()
        elif entry.name.startswith(".."):
            shutil.rmtree(entry)


def _digest(volume: Files) -> str:
    """Names the content: the same files with the same modes, and only they, have the same."""
    told = hashlib.sha256(repr(volume.group).encode())
    for file in sorted(volume.files, key=lambda file: file.path):
        told.update(f"\0{file.path}\0{file.mode:o}\0{len(file.data)}\0".encode("utf-8", "surrogateescape"))
        told.update(file.data)
    return told.hexdigest()[:32]


def _write_all(folder: Path, volume: Files) -> None:
    with suppress(FileNotFoundError):  # what was interrupted
        shutil.rmtree(folder)
    folder.mkdir()
    _own(folder, 0o755, volume.group)
    for file in volume.files:
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.data)
        _own(place, file.mode | (0o440 if volume.group is not None else 0), volume.group)


def _own(path: Path, mode: int, group: int | None) -> None:
    if group is not None:
        os.chown(path, -1, group)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    path.symlink_to(target)


# --- parts of volumes ----------------------------------------------------------------------------


def bind(part: SubPath) -> None:
    """Bind a part of a volume to its target, anew if something is bound there. Raises MountFailed.

    A part that is not there is made, as a folder.
    """
    try:
        root = os.open(part.root, os.O_PATH | os.O_DIRECTORY)
        try:
            opened = _open_part(root, part.part)
        finally:
            os.close(root)
        try:
            _bind(opened, Path(part.target))
        finally:
            os.close(opened)
    except OSError as error:
        cause = "it leads out of the volume" if error.errno == errno.EXDEV else error.strerror or str(error)
        text = f'failed to prepare subPath for volumeMount "{part.volume}" of container: {part.part}: {cause}'
        raise MountFailed(text) from error


def _open_part(root: int, part: str) -> int:
    names = [name for name in part.split("/") if name]
    with suppress(FileNotFoundError):
        return mounts.open_beneath(root, "/".join(names) or ".", os.O_PATH)
    mode = stat.S_IMODE(os.fstat(root).st_mode)
    opened = os.dup(root)
    for count in range(1, len(names) + 1):
        above = opened
        try:
            try:
                opened = mounts.open_beneath(root, "/".join(names[:count]), os.O_PATH)
            except FileNotFoundError:
                os.mkdir(names[count - 1], mode, dir_fd=above)
                opened = mounts.open_beneath(above, names[count - 1], os.O_PATH)
                os.chmod(f"/proc/self/fd/{opened}", mode)  # whatever the umask is
        finally:
            os.close(above)
    return opened


def _bind(opened: int, target: Path) -> None:
    for point in mounts.mount_points(str(target)):
        mounts.unmount(point)
    folder = stat.S_ISDIR(os.fstat(opened).st_mode)
    if target.exists() and target.is_dir() != folder:
        (target.rmdir if target.is_dir() else target.unlink)()
    if folder:
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mounts.bind(f"/proc/self/fd/{opened}", str(target))


# --- the end -------------------------------------------------------------------------------------


def remove(folder: Path) -> None:
    """Remove a pod's folder with everything of its own, and nothing that is mounted there. Raises OSError."""
    for point in mounts.mount_points(str(folder)):
        mounts.unmount(point)
    left = mounts.mount_points(str(folder))
    if left:
        raise OSError(f"still mounted: {left[0]}")
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
