"""Which node this is, across restarts, reboots and changes of its address.

Owns: `<state-dir>/node-id.json` and the lock of the state directory. A node's id
is random and made once; the boot id, which the kernel draws at every boot, tells
a restart of netd from a reboot or a copy of the disk. Invariants: one netd per
state directory; a disk copied to another machine gets a new id where the
machine can tell (its firmware's UUID is kept beside the id).
Source of the boot id: Linux drivers/char/random.c, proc(5).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from podlane.errors import PodlaneError
from podlane.runtime.atomic import write_atomic
from podlane.runtime.log import get_logger

FILE = "node-id.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOCK = "lock"
LOCKS = Path("/proc/locks")
MACHINE = Path("/sys/class/dmi/id/product_uuid")
"""Differs between a virtual machine and its clone; absent on boards without such firmware."""

_log = get_logger("netd.identity")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """`host_name` is for people only."""

    node_id: str
    boot_id: str
    host_name: str


def load_or_create(
    folder: Path, *, host_name: str = "", boot_id_file: Path = BOOT_ID, machine_file: Path = MACHINE
) -> NodeIdentity:
    """The identity of this node; its id is drawn and written down if there is none, or not this machine's.

    `host_name` defaults to the host's own. Raises PodlaneError when the id
    cannot be written or the kernel tells no boot id.
    """
    try:
        boot_id = boot_id_file.read_text().strip()
    except OSError as error:
        raise PodlaneError(f"read {boot_id_file}: {error.strerror or error}") from error
    machine = _read(machine_file)
    node_id = _load(folder / FILE, machine)
    if not node_id:
        node_id = uuid.uuid4().hex
        write_atomic(folder / FILE, json.dumps({"node": node_id, "machine": machine}) + "\n")
        _log.info("node id drawn", node=node_id, path=str(folder / FILE))
    return NodeIdentity(node_id, boot_id, host_name or socket.gethostname())


def _load(path: Path, machine: str) -> str:
    """The id kept in the file; empty if there is none to use."""
    try:
        kept = json.loads(path.read_text())
        node_id = kept["node"]
        if not isinstance(node_id, str) or not node_id:
            raise ValueError(f"node: expected a string, got {node_id!r}")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("saved node id not usable, drawing another", path=str(path), error=str(error))
        return ""
    of = kept.get("machine")
    if of and machine and of != machine:
        _log.warning("saved node id is another machine's, drawing another", path=str(path), machine=machine, was=of)
        return ""
    return node_id


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def running(folder: Path) -> int:
    """The process that is the netd of this state directory; 0 when there is none. Takes no lock, not even for a moment.

    Source: the kernel's list of locks, proc_locks(5).
    """
    try:
        inode = (folder / LOCK).stat().st_ino
    except OSError:
        return 0
    for line in _read(LOCKS).splitlines():
        _, kind, _, _, process, file, *_ = line.replace("-> ", "").split()
        if kind == "FLOCK" and int(file.rpartition(":")[2]) == inode and _read(folder / LOCK) == process:
            return int(process)
    return 0


class StateLock:
    """The right to be the netd of a state directory, until `release` or the end of the process.

    Two on one directory would be one node at two addresses, and take each
    other's lease. Raises PodlaneError when another process has it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PodlaneError(f"lock {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(path) or "unknown"
            os.close(self._descriptor)
            raise PodlaneError(f"use state directory {folder}: another netd has it, process {holder}") from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
