"""The files of the node that a pod's containers see: /etc/hosts and /etc/resolv.conf.

Owns: the folder `pods/` of the agent's state, one folder per pod UID. Docker
makes such files only for networks of its own. Invariants: a pod's hosts file is
there before a container that mounts it is made; it is written in place, for a
mount follows the file and not its name; what a container added to it stays;
folders of pods that are not known are removed. Source: the kubelet's managed
hosts file (pkg/kubelet/kubelet_pods.go), systemd-resolved(8): its stub listens on
the host's loopback, which a pod cannot reach.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from scheduler.agent.runtime import Mount

RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
_STUBS = {"127.0.0.53", "127.0.0.54"}

_HOSTS = """\
# Podlane-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the files are; `resolv_conf` is "" on a node without one. Pure."""

    folder: str = "/var/lib/podlane/agent/pods"
    resolv_conf: str = "/etc/resolv.conf"

    def hosts(self, uid: str) -> str:
        return f"{self.folder}/{uid}/hosts"

    def mounts(self, uid: str) -> tuple[Mount, ...]:
        """What each container of a pod has mounted."""
        hosts = Mount(self.hosts(uid), "/etc/hosts")
        if not self.resolv_conf:
            return (hosts,)
        return hosts, Mount(self.resolv_conf, "/etc/resolv.conf", read_only=True)


class PodFiles:
    """`folder` is made when it is needed."""

    def __init__(self, folder: Path, *, resolv_conf: Path = RESOLV_CONF, upstream: Path = RESOLVED_UPSTREAM) -> None:
        self._folder = folder.absolute()
        self._resolv_conf = resolv_conf
        self._upstream = upstream
        self._told: set[str] = set()
        self._log = get_logger("agent")

    def paths(self) -> Paths:
        return Paths(str(self._folder), _resolv_conf(self._resolv_conf, self._upstream))

    def write_hosts(self, path: str, hostname: str, ips: Sequence[str]) -> None:
        """Write a pod's hosts file unless it begins as it should. Raises PodlaneError."""
        text = _HOSTS + "".join(f"{ip}\t{hostname}\n" for ip in ips)
        file = Path(path)
        try:
            if file.is_file() and file.read_text(errors="replace").startswith(text):
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o644)
        except OSError as error:
            raise PodlaneError(f"write {path}: {error.strerror or error}") from error

    def keep(self, uids: Collection[str]) -> None:
        """Remove the folders of all pods but these. What cannot be removed is told, and tried again next time."""
        try:
            unknown = [entry for entry in self._folder.iterdir() if entry.name not in uids]
        except FileNotFoundError:
            return
        for entry in unknown:
            try:
                shutil.rmtree(entry)
            except OSError as error:
                if entry.name not in self._told:
                    self._log.warning("pod folder not removed", folder=str(entry), error=error.strerror or str(error))
                self._told.add(entry.name)


def _resolv_conf(file: Path, upstream: Path) -> str:
    """The resolver configuration that also works inside a pod; "" when the node has none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    words = [line.split() for line in lines]
    servers = {w[1] for w in words if len(w) > 1 and w[0] == "nameserver"}
    if servers and servers <= _STUBS and upstream.is_file():
        return str(upstream)
    return str(file)
