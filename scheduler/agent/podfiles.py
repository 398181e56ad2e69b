"""The files of the node that a pod's containers see: /etc/hosts and /etc/resolv.conf.

Owns: the folder `pods/` of the agent's state, one folder per pod UID, in which
its volumes are too (volumefiles.py). Docker makes such files only for networks
of its own. Invariants: a pod's hosts file is there before a container that
mounts it is made; only root can look into the folder, for there are secrets in
it; the hosts file is written in place, for a mount follows the file and not
its name; what a container added to it stays. Source: the kubelet's managed
hosts file (pkg/kubelet/kubelet_pods.go), systemd-resolved(8): its stub listens on
the host's loopback, which a pod cannot reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from scheduler.agent import selinux, volumefiles
from scheduler.agent.podpaths import VOLUME_FOLDERS, Paths
from scheduler.agent.volumes import SubPath, VolumeSetUp

HOSTS = Path("/etc/hosts")
RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
RETRY = 30.0
"""Seconds until a folder that could not be removed is tried again."""
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
_ON_HOST = "# Podlane-managed hosts file (host network).\n"
_ALIASES = "\n# Entries added by HostAliases.\n"


class PodFiles:
    """`folder` is made when it is needed."""

    def __init__(
        self,
        folder: Path,
        *,
        resolv_conf: Path = RESOLV_CONF,
        upstream: Path = RESOLVED_UPSTREAM,
        hosts: Path = HOSTS,
        share: Callable[[Path], None] = selinux.share,
    ) -> None:
        self._folder = folder.absolute()
        self._resolv_conf = resolv_conf
        self._upstream = upstream
        self._hosts = hosts
        self._share = share
        self._not_before: dict[str, float] = {}
        self._log = get_logger("agent")

    def paths(self) -> Paths:
        return Paths(str(self._folder), _resolv_conf(self._resolv_conf, self._upstream))

    def write_hosts(
        self, path: str, hostname: str, ips: Sequence[str], *, aliases: Sequence[str] = (), on_host: bool = False
    ) -> None:
        """Write a pod's hosts file unless it begins as it should. Raises PodlaneError.

        `aliases` are lines of it; `on_host`: the pod uses the node's network, so it has what the node has.
        """
        file = Path(path)
        try:
            if on_host:
                text = _ON_HOST + (self._hosts.read_text(errors="replace") if self._hosts.is_file() else "")
            else:
                text = _HOSTS + "".join(f"{ip}\t{hostname}\n" for ip in ips)
            if aliases:
                text += _ALIASES + "".join(f"{line}\n" for line in aliases)
            if file.is_file() and file.read_text(errors="replace").startswith(text):
                return
            self._make_folder(file.parent)
            file.write_text(text)
            file.chmod(0o644)
        except OSError as error:
            raise PodlaneError(f"write {path}: {error.strerror or error}") from error

    def make_empty(self, path: str) -> None:
        """Make a file that a container may write whoever it runs as. Raises PodlaneError."""
        file = Path(path)
        try:
            self._make_folder(file.parent)
            file.unlink(missing_ok=True)  # an earlier attempt's: whoever has it mounted keeps it
            file.touch()
            file.chmod(0o666)
        except OSError as error:
            raise PodlaneError(f"make {path}: {error.strerror or error}") from error

    def set_up(self, volume: VolumeSetUp) -> None:
        """Raises volumefiles.MountFailed; PodlaneError."""
        try:
            self._make_folder(self._folder)
        except OSError as error:
            raise PodlaneError(f"make {self._folder}: {error.strerror or error}") from error
        volumefiles.set_up(volume)

    def bind(self, part: SubPath) -> None:
        """Raises volumefiles.MountFailed."""
        volumefiles.bind(part)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of a pod; the node's other users see none of them, and all that is in it has its label."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o750)
        self._share(self._folder)
        folder.mkdir(parents=True, exist_ok=True)

    def left_over(self, uids: Collection[str]) -> list[str]:
        """UIDs of the pods but these that have a folder here, without those whose removal has just failed."""
        try:
            found = [entry.name for entry in self._folder.iterdir() if entry.name not in uids]
        except FileNotFoundError:
            return []
        now = time.monotonic()
        return [uid for uid in found if self._not_before.get(uid, now) <= now]

    def has_volumes(self, uid: str) -> bool:
        """Whether there is something for `remove_volumes` to do, whose last attempt has not just failed."""
        if self._not_before.get(uid, 0.0) > time.monotonic():
            return False
        return any((self._folder / uid / name).exists() for name in VOLUME_FOLDERS)

    def remove(self, uid: str) -> float:
        """Remove a pod's folder; takes as long as its volumes are large. Returns in how many seconds to look again."""
        return self._remove(uid, self._folder / uid)

    def remove_volumes(self, uid: str) -> float:
        """The same, but leave what is told of a finished pod: its containers' last words."""
        return max(self._remove(uid, self._folder / uid / name) for name in VOLUME_FOLDERS)

    def _remove(self, uid: str, folder: Path) -> float:
        try:
            volumefiles.remove(folder)
        except OSError as error:
            if uid not in self._not_before:
                text = error.strerror or str(error)
                self._log.warning("pod folder not removed", folder=str(folder), error=text, retry_in=RETRY)
            self._not_before[uid] = time.monotonic() + RETRY
        else:
            self._not_before.pop(uid, None)
        return RETRY


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
