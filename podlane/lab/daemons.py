"""How each daemon of a lab is run: its command line, and how to tell that it is ready. Pure.

The daemons' own defaults are used wherever a host has the network namespace to
itself (loopback ports are the same on every host); only paths, names and
addresses are given, since the file system is shared.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from podlane.lab.topology import ETCD_CLIENT_PORT, ETCD_METRICS_PORT, ETCD_PEER_PORT, Host, Topology
from podlane.pki.profile import ETCD_PEER_HOSTNAME
from podlane.store.config import StoreConfig

NETD_PORT = 10258
PROXYD_PORT = 10256
AGENT_PORT = 10248
SCHEDULER_PORT = 10259
HOLLOW_PORT = 10247


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """`ready` is where on the host's loopback a GET must answer 200, or a unix socket that must accept."""

    name: str
    argv: tuple[str, ...]
    ready: str | Path
    env: tuple[tuple[str, str], ...] = ()
    stop_timeout: float = 15.0


def specs(lab: Topology, host: Host) -> tuple[DaemonSpec, ...]:
    """The daemons of a host, in the order they are started."""
    if host.role == "server":
        return (_etcd(lab, host), *((_scheduler(lab, host),) if lab.runs_scheduler(host) else ()))
    if host.role == "hollow":
        return (_hollow(lab, host),)
    return (_dockerd(lab, host), _netd(lab, host), _proxyd(lab, host), _agent(lab, host))


def subnet_file(lab: Topology, host: Host) -> Path:
    return lab.run_dir / host.name / "flannel" / "subnet.env"


def netd_state_dir(lab: Topology, host: Host) -> Path:
    return lab.data_dir / host.name / "netd"


def _program(name: str) -> str:
    """A console script of the virtual environment that runs this very code."""
    return str(Path(sys.executable).parent / name)


def _etcd(lab: Topology, host: Host) -> DaemonSpec:
    peers = ",".join(f"{h.name}=https://{h.address}:{ETCD_PEER_PORT}" for h in lab.hosts if h.role == "server")
    files = lab.certificate("etcd", host)
    return DaemonSpec(
        "etcd",
        (
            "etcd",
            f"--name={host.name}",
            f"--data-dir={lab.data_dir / host.name / 'etcd'}",
            f"--listen-client-urls=https://0.0.0.0:{ETCD_CLIENT_PORT}",
            f"--advertise-client-urls=https://{host.address}:{ETCD_CLIENT_PORT}",
            f"--listen-peer-urls=https://{host.address}:{ETCD_PEER_PORT}",
            f"--initial-advertise-peer-urls=https://{host.address}:{ETCD_PEER_PORT}",
            f"--listen-metrics-urls=http://127.0.0.1:{ETCD_METRICS_PORT}",
            f"--initial-cluster={peers}",
            "--client-cert-auth",
            f"--trusted-ca-file={files.ca}",
            f"--cert-file={files.pem}",
            f"--key-file={files.key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={files.ca}",
            f"--peer-cert-file={files.pem}",
            f"--peer-key-file={files.key}",
            f"--peer-cert-allowed-hostname={ETCD_PEER_HOSTNAME}",
            f"--client-crl-file={lab.revocations}",
            f"--peer-crl-file={lab.revocations}",
            f"--initial-cluster-token=podlane-lab-{lab.name}",
            "--logger=zap",
            "--log-level=warn",
        ),
        ready=f"http://127.0.0.1:{ETCD_METRICS_PORT}/health",
        # etcd 3.4 refuses to start on arm64 without it
        env=(("ETCD_UNSUPPORTED_ARCH", "arm64"),) if platform.machine() == "aarch64" else (),
    )


def _dockerd(lab: Topology, host: Host) -> DaemonSpec:
    run = lab.run_dir / host.name
    return DaemonSpec(
        "dockerd",
        (
            "dockerd",
            f"--data-root={lab.data_dir / host.name / 'docker'}",
            f"--exec-root={run / 'docker'}",
            f"--host=unix://{lab.docker_socket(host)}",
            f"--pidfile={run / 'docker.pid'}",
            f"--cgroup-parent={lab.cgroup}/{host.name}",
            "--log-level=warn",
        ),
        ready=lab.docker_socket(host),
        stop_timeout=25.0,
    )


def store_options(config: StoreConfig) -> dict[str, str]:
    """What is said by `--etcd-NAME=…` and by PODLANE_ETCD_NAME, by name."""
    return {
        "endpoints": ",".join(config.endpoints),
        "cafile": config.cafile,
        "certfile": config.certfile,
        "keyfile": config.keyfile,
    }


def _store(lab: Topology, host: Host, daemon: str) -> tuple[str, ...]:
    config = lab.store_config(daemon, host)
    return tuple(f"--etcd-{name}={value}" for name, value in store_options(config).items())


def _health(port: int) -> tuple[str, ...]:
    return ("--healthz-ip=127.0.0.1", f"--healthz-port={port}")


def _ready(port: int) -> str:
    return f"http://127.0.0.1:{port}/readyz"


def _netd(lab: Topology, host: Host) -> DaemonSpec:
    return DaemonSpec(
        "netd",
        (
            _program("netd"),
            "run",
            *_store(lab, host, "netd"),
            "--iface=eth0",
            "--vxlan-guard",
            f"--node-name={host.name}",
            f"--subnet-file={subnet_file(lab, host)}",
            f"--state-dir={netd_state_dir(lab, host)}",
            *_health(NETD_PORT),
        ),
        ready=_ready(NETD_PORT),
    )


def _proxyd(lab: Topology, host: Host) -> DaemonSpec:
    return DaemonSpec(
        "proxyd",
        (_program("proxyd"), "run", *_store(lab, host, "proxyd"), f"--node-name={host.name}", *_health(PROXYD_PORT)),
        ready=_ready(PROXYD_PORT),
    )


def _agent(lab: Topology, host: Host) -> DaemonSpec:
    shown = lab.certificate("agent", host)
    return DaemonSpec(
        "agent",
        (
            _program("scheduler"),
            "agent",
            *_store(lab, host, "agent"),
            f"--node-name={host.name}",
            f"--node-ip={host.address}",
            f"--tls-cert-file={shown.pem}",
            f"--tls-private-key-file={shown.key}",
            f"--client-ca-file={shown.ca}",
            f"--docker-host=unix://{lab.docker_socket(host)}",
            f"--subnet-file={subnet_file(lab, host)}",
            f"--state-dir={lab.data_dir / host.name / 'agent'}",
            # the hosts have no disk of their own, and a machine that people work on is often fuller than a server's
            "--eviction-hard=nodefs.available<1Gi,imagefs.available<1Gi",
            "--image-gc=100,99",
            *_health(AGENT_PORT),
        ),
        ready=_ready(AGENT_PORT),
    )


def _scheduler(lab: Topology, host: Host) -> DaemonSpec:
    return DaemonSpec(
        "scheduler",
        (
            _program("scheduler"),
            "run",
            *_store(lab, host, "scheduler"),
            f"--identity={host.name}",
            *_health(SCHEDULER_PORT),
        ),
        ready=_ready(SCHEDULER_PORT),
    )


def _hollow(lab: Topology, host: Host) -> DaemonSpec:
    numbers = lab.hollow_nodes(host)
    return DaemonSpec(
        "hollow",
        (
            _program("scheduler"),
            "hollow",
            *_store(lab, host, "hollow"),
            f"--nodes={len(numbers)}",
            f"--first={numbers.start}",
            f"--state-dir={lab.data_dir / host.name}",
            "--log-level=warning",
            *_health(HOLLOW_PORT),
        ),
        ready=_ready(HOLLOW_PORT),
    )
