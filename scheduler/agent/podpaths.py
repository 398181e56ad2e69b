"""Where on the node a pod's files are. Pure.

Owns: the layout below the folder `pods/` of the agent's state: `UID/hosts`,
`UID/volumes/NAME`, `UID/subpaths/CONTAINER/INDEX`, `UID/last-words/CONTAINER/0` and `1`.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.agent.runtime import Mount

VOLUME_FOLDERS = ("subpaths", "volumes")
"""What in a pod's folder is its volumes; parts that are bound come first, for they are taken down first."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files are; `resolv_conf` is "" on a node without one. Pure."""

    folder: str = "/var/lib/podlane/agent/pods"
    resolv_conf: str = "/etc/resolv.conf"

    def hosts(self, uid: str) -> str:
        return f"{self.folder}/{uid}/hosts"

    def volume(self, uid: str, name: str) -> str:
        return f"{self.folder}/{uid}/volumes/{name}"

    def sub_path(self, uid: str, container: str, index: int) -> str:
        """Where a part of a volume is bound for the container's volume mount of that index."""
        return f"{self.folder}/{uid}/subpaths/{container}/{index}"

    def last_words(self, uid: str, container: str, attempt: int) -> str:
        """What an attempt has at its terminationMessagePath: as many as attempts are kept take turns."""
        return f"{self.folder}/{uid}/last-words/{container}/{attempt % 2}"

    def mounts(self, uid: str) -> tuple[Mount, ...]:
        """What each container of a pod has mounted."""
        hosts = Mount(self.hosts(uid), "/etc/hosts")
        if not self.resolv_conf:
            return (hosts,)
        return hosts, Mount(self.resolv_conf, "/etc/resolv.conf", read_only=True)
