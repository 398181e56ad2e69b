"""How netd was started on this host, for the commands that look at it.

Owns: `<state-dir>/settings.json`, which `netd run` writes, so that `netd
status` and the like need none of its options again. No password is written.
Invariant: a file that is missing or damaged costs only the convenience.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from podlane.api.subnets import DEFAULT_PREFIX
from podlane.runtime.atomic import write_atomic
from podlane.store.config import DEFAULT_ENDPOINT

_FILE = "settings.json"


@dataclass(frozen=True, slots=True)
class HostSettings:
    """The options of `netd run` by their names; empty where not given. `healthz_port` 0: none is served."""

    etcd_endpoints: str = DEFAULT_ENDPOINT
    etcd_cafile: str = ""
    etcd_certfile: str = ""
    etcd_keyfile: str = ""
    etcd_username: str = ""
    etcd_prefix: str = DEFAULT_PREFIX
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    public_ip: str = ""
    public_ipv6: str = ""
    subnet_file: str = "/run/flannel/subnet.env"
    healthz_ip: str = "127.0.0.1"
    healthz_port: int = 0
    ip_blackhole_route: bool = False

    def save(self, folder: Path) -> None:
        write_atomic(folder / _FILE, msgspec.json.format(msgspec.json.encode(self)).decode() + "\n")

    @classmethod
    def load(cls, folder: Path) -> HostSettings:
        """The defaults where there is no usable file."""
        try:
            return msgspec.json.decode((folder / _FILE).read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return cls()
