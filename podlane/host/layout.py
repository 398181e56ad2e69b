"""Where everything of Podlane is on a host.

Owns: the paths. Invariant: all of them are below /etc, /opt, /run and /var, for
elsewhere an Atomic-style host cannot be written to; /opt may be a link to
/var/opt there. A version is one folder, and `current` leads to the one in use,
so that a change of version is the change of one link.
"""

from __future__ import annotations

from typing import Literal

OPT = "/opt/podlane"
VERSIONS = f"{OPT}/versions"
CURRENT = f"{OPT}/current"
COMMANDS = f"{OPT}/bin"
"""On the PATH: the commands, each with the settings of its daemon."""

ETC = "/etc/podlane"
PKI = f"{ETC}/pki"
CONFIG = f"{ETC}/config.yaml"
CLUSTER_ENVIRONMENT = f"{ETC}/cluster.env"
"""Where etcd is, for all daemons of the host: one line to change when members come or go."""

RECORD = f"{ETC}/install.json"
"""What this host was installed as: upgrade and uninstall begin there."""

STATE = "/var/lib/podlane"
ETCD_DATA = f"{STATE}/etcd"
BACKUPS = f"{STATE}/backups"
"""A server's daily snapshots of etcd."""

REVOKED = f"{STATE}/revoked"
REVOCATION_LIST = f"{REVOKED}/crl.pem"
"""etcd reads it at each connection, and is not let into PKI."""

UNITS = "/etc/systemd/system"
TARGET = "podlane.target"
RENEW_TIMER = "podlane-renew.timer"
SNAPSHOT_TIMER = "podlane-snapshot.timer"
TIMERS = (RENEW_TIMER, SNAPSHOT_TIMER)

CLIENT_PORT = 2379
PEER_PORT = 2380
ETCD_METRICS = "http://127.0.0.1:2381"
JOIN_PORT = 10261

Role = Literal["server", "node", "all"]
Daemon = Literal["etcd", "scheduler", "join", "netd", "proxyd", "agent"]

ORDER: tuple[Daemon, ...] = ("etcd", "join", "scheduler", "netd", "proxyd", "agent")
"""In which daemons start; they stop in reverse."""

NODE_DAEMONS: tuple[Daemon, ...] = ("netd", "proxyd", "agent")


def version_folder(version: str) -> str:
    return f"{VERSIONS}/{version}"


def unit_name(daemon: str) -> str:
    return f"podlane-{daemon}.service"


def environment_file(daemon: str) -> str:
    return f"{ETC}/{daemon}.env"


def credentials(daemon: Daemon) -> str:
    """Where a daemon that is not root finds its keys: systemd's copies, made when the unit starts."""
    return f"/run/credentials/{unit_name(daemon)}"
