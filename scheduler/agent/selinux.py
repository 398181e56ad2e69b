"""What SELinux lets a pod's containers do with the node's files that are made for them.

Owns: the label of the folder `pods/` and of each file system in memory below it,
which files inherit; and the level at which a pod's containers run. Invariants:
nothing else is labelled, least of all what a hostPath volume names; a pod's
containers run at one level, for what one of them writes has its level, and nobody
of another can read it; where SELinux is off, nothing is done, and a dockerd without
`--selinux-enabled` takes no notice. Why: dockerd labels what it makes itself; what
it only mounts would be var_lib_t, of which confined containers may read nothing.
Source: the kubelet's relabelling of volumes, container-selinux.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

SELINUX = Path("/sys/fs/selinux/enforce")
_LABEL = b"system_u:object_r:container_file_t:s0"
_CATEGORIES = 1024


def is_on(enforce: Path = SELINUX) -> bool:
    return enforce.exists()


def share(path: str | os.PathLike[str], *, enforce: Path = SELINUX) -> None:
    """Let containers use a folder, and what will be made in it."""
    if not is_on(enforce):
        return
    with suppress(OSError):  # a policy that knows no containers: nobody is confined
        os.setxattr(path, "security.selinux", _LABEL)


def level(uid: str) -> str:
    """A pod's: the sensitivity that all have, and two categories of which there are half a million pairs."""
    number = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8])
    first, second = number % _CATEGORIES, number // _CATEGORIES % (_CATEGORIES - 1)
    low, high = sorted((first, second + (second >= first)))
    return f"s0:c{low},c{high}"
