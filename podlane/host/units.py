"""The systemd units, as text. Pure.

Owns: how each daemon is started and what it may do. Invariants: no daemon may
do more than it needs, and each exception says what needs it; nothing restarts
for ever; a pod survives the restart of every unit, since containers belong to
Docker; nothing here is newer than systemd 247. etcd and the scheduler are not
root: systemd reads their keys and hands them over (LoadCredential), so the files
stay root's. Sources: systemd.exec(5),
systemd.service(5), systemd.unit(5). See docs/adr/0023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podlane.host.layout import (
    BACKUPS,
    CLUSTER_ENVIRONMENT,
    CURRENT,
    ETC,
    ETCD_DATA,
    PKI,
    RENEW_TIMER,
    REVOKED,
    SNAPSHOT_TIMER,
    STATE,
    TARGET,
    UNITS,
    Daemon,
    environment_file,
    unit_name,
)

ETCD_USER = "podlane-etcd"

Lines = tuple[str, ...]

_DESCRIPTIONS: dict[Daemon, str] = {
    "etcd": "etcd of Podlane, the cluster's store",
    "join": "Podlane join service, which admits nodes with a token",
    "scheduler": "Podlane control plane",
    "netd": "Podlane overlay network",
    "proxyd": "Podlane service proxy",
    "agent": "Podlane agent, which runs this node's pods",
}

_AFTER: dict[Daemon, Lines] = {
    "etcd": (),
    "join": (unit_name("etcd"),),
    "scheduler": (unit_name("etcd"),),
    "netd": (unit_name("etcd"), "firewalld.service", "nftables.service"),
    "proxyd": (unit_name("etcd"), "firewalld.service", "nftables.service"),
    "agent": (unit_name("etcd"), unit_name("netd"), "docker.service"),
}

_COMMANDS: dict[Daemon, str] = {
    "join": f"{CURRENT}/bin/podlane host join-serve",
    "scheduler": f"{CURRENT}/bin/scheduler run",
    "netd": f"{CURRENT}/bin/netd run",
    "proxyd": f"{CURRENT}/bin/proxyd run",
    "agent": f"{CURRENT}/bin/scheduler agent",
}

_EVERYWHERE: Lines = (
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
)

_SANDBOX: Lines = (
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "MemoryDenyWriteExecute=yes",
    "UMask=0077",
)
"""Needs a mount namespace of the daemon's own."""

_UNPRIVILEGED: Lines = (
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "RemoveIPC=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
)

_DOCKER_IS_ROOT: Lines = ("InaccessiblePaths=-/run/docker.sock -/run/containerd",)

_MAY: dict[Daemon, Lines] = {
    "etcd": (*_SANDBOX, *_UNPRIVILEGED),
    "join": (
        *_SANDBOX,
        *_UNPRIVILEGED,
        "# root without any capability: it has the authority's key, and writes down what it signs",
        f"ReadWritePaths={PKI}/issued {REVOKED}",
    ),
    "scheduler": (*_SANDBOX, *_UNPRIVILEGED),
    "netd": (
        *_SANDBOX,
        "# links, routes, nftables; raw sockets for its probes; it sets sysctls below net: no ProtectKernelTunables",
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET",
        "SystemCallFilter=@system-service",
        "# iptables' lock is in /run",
        "ReadWritePaths=/run",
        *_DOCKER_IS_ROOT,
    ),
    "proxyd": (
        *_SANDBOX,
        "# nftables, routes, conntrack; it sets sysctls below net, so no ProtectKernelTunables",
        "CapabilityBoundingSet=CAP_NET_ADMIN",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallFilter=@system-service",
        *_DOCKER_IS_ROOT,
    ),
    "agent": (
        "# It mounts what containers get, and must see the mounts that Docker makes: no setting that needs a mount",
        "# namespace of its own can be here (ProtectSystem, PrivateTmp, ...). Who may use Docker is root anyway.",
        "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_NET_ADMIN CAP_NET_RAW CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH",
        "CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_FSETID CAP_KILL CAP_SYS_PTRACE CAP_MKNOD",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallFilter=@system-service @mount setns unshare",
        "ProtectHostname=yes",
        "UMask=0022",
    ),
}

_OF_THE_DAEMON: dict[Daemon, Lines] = {
    "etcd": (
        f"User={ETCD_USER}",
        f"Group={ETCD_USER}",
        f"StateDirectory={ETCD_DATA.removeprefix('/var/lib/')}",
        "StateDirectoryMode=0700",
        "LimitNOFILE=65536",
        "OOMScoreAdjust=-900",
        "IOSchedulingPriority=0",
    ),
    "join": ("OOMScoreAdjust=-100",),
    "scheduler": ("DynamicUser=yes", "LimitNOFILE=65536", "OOMScoreAdjust=-500"),
    "netd": (
        f"StateDirectory={STATE.removeprefix('/var/lib/')}/netd",
        "# pods and Docker read subnet.env while netd is restarted",
        "RuntimeDirectory=flannel",
        "RuntimeDirectoryPreserve=yes",
        "OOMScoreAdjust=-900",
    ),
    "proxyd": ("LimitNOFILE=65536", "OOMScoreAdjust=-900"),
    "agent": (
        f"StateDirectory={STATE.removeprefix('/var/lib/')}/agent",
        "StateDirectoryMode=0700",
        "LimitNOFILE=65536",
        "OOMScoreAdjust=-900",
    ),
}

_WATCHED = "WatchdogSec=60"  # etcd tells systemd when it is ready and nothing after


def daemon_unit(daemon: Daemon, *, etcd_program: str = f"{CURRENT}/bin/etcd", tls: bool = True) -> str:
    """The service of one daemon. Its settings are in its environment file, so the unit is the same everywhere."""
    command = etcd_program if daemon == "etcd" else _COMMANDS[daemon]
    docker: Lines = ("Wants=docker.service",) if daemon == "agent" else ()
    return _text(
        "Unit",
        [
            f"Description={_DESCRIPTIONS[daemon]}",
            "Wants=network-online.target",
            *docker,
            f"After={' '.join(('network-online.target', *_AFTER[daemon]))}",
            f"PartOf={TARGET}",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=30",
        ],
        "Service",
        [
            "Type=notify",
            "NotifyAccess=main",
            *(() if daemon == "etcd" else (f"EnvironmentFile={CLUSTER_ENVIRONMENT}",)),
            f"EnvironmentFile={environment_file(daemon)}",
            f"ExecStart={command}",
            "# ready is when all that it waits for is there: etcd, its first complete look at the cluster",
            "TimeoutStartSec=infinity",
            "TimeoutStopSec=60",
            *(() if daemon == "etcd" else (_WATCHED,)),
            "Restart=always",
            "RestartSec=2",
            "KillMode=mixed",
            *_OF_THE_DAEMON[daemon],
            *(_loaded(daemon) if tls else ()),
            *_EVERYWHERE,
            *_MAY[daemon],
        ],
        "Install",
        [f"WantedBy={TARGET}"],
    )


def loaded_files(daemon: Daemon) -> tuple[str, ...]:
    """Which files below PKI systemd hands to a daemon that is not root."""
    return ("ca.pem", f"{daemon}.pem", f"{daemon}.key") if daemon in ("etcd", "scheduler") else ()


def _loaded(daemon: Daemon) -> Iterable[str]:
    return (f"LoadCredential={name}:{PKI}/{name}" for name in loaded_files(daemon))


def target_unit() -> str:
    return _text(
        "Unit",
        ["Description=Podlane", "Documentation=file:///etc/podlane/README"],
        "Install",
        ["WantedBy=multi-user.target"],
    )


def renew_units() -> dict[str, str]:
    """A daily look whether a certificate ends soon."""
    service = _text(
        "Unit",
        ["Description=Renewal of Podlane's certificates on this host", "After=network-online.target"],
        "Service",
        [
            "Type=oneshot",
            f"ExecStart={CURRENT}/bin/podlane host renew",
            *_EVERYWHERE,
            *_SANDBOX,
            f"ReadWritePaths={ETC} -{REVOKED}",
            "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "SystemCallFilter=@system-service",
        ],
    )
    timer = _text(
        "Unit",
        ["Description=Daily renewal of Podlane's certificates", f"PartOf={TARGET}"],
        "Timer",
        ["OnCalendar=daily", "RandomizedDelaySec=6h", "OnBootSec=5min", "Persistent=true"],
        "Install",
        [f"WantedBy={TARGET}"],
    )
    return {f"{UNITS}/podlane-renew.service": service, f"{UNITS}/{RENEW_TIMER}": timer}


KEPT_SNAPSHOTS = 7
SNAPSHOT = "podlane-snapshot.service"


def snapshot_units() -> dict[str, str]:
    """A server's daily snapshot of its own etcd member."""
    service = _text(
        "Unit",
        ["Description=Snapshot of Podlane's etcd", f"After={unit_name('etcd')}"],
        "Service",
        [
            "Type=oneshot",
            f"EnvironmentFile={environment_file('snapshot')}",
            "# how many of this server's stay; another number belongs into a drop-in, with the same words",
            f"Environment=PODLANE_ETCD_SNAPSHOT_KEEP={KEPT_SNAPSHOTS}",
            f"ExecStart={CURRENT}/bin/podlane etcd snapshot {BACKUPS}",
            "TimeoutStartSec=2h",
            f"StateDirectory={BACKUPS.removeprefix('/var/lib/')}",
            "StateDirectoryMode=0700",
            "Nice=10",
            "IOSchedulingClass=idle",
            *_EVERYWHERE,
            *_SANDBOX,
            *_UNPRIVILEGED,
        ],
    )
    timer = _text(
        "Unit",
        ["Description=Daily snapshot of Podlane's etcd", f"PartOf={TARGET}"],
        "Timer",
        ["OnCalendar=daily", "RandomizedDelaySec=3h", "Persistent=true"],
        "Install",
        [f"WantedBy={TARGET}"],
    )
    return {f"{UNITS}/{SNAPSHOT}": service, f"{UNITS}/{SNAPSHOT_TIMER}": timer}


def _text(*sections: str | Sequence[str]) -> str:
    lines = ["# Written by podlane install; changes belong into a drop-in (systemctl edit)."]
    for section in sections:
        lines += [f"\n[{section}]"] if isinstance(section, str) else section
    return "\n".join(lines) + "\n"
