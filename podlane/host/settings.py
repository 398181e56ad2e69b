"""The daemons' settings on one host, as environment files. Pure.

Owns: what is in /etc/podlane/*.env and config.yaml. Invariant: no secret is in
them; keys are named, not held.
"""

from __future__ import annotations

from collections.abc import Mapping

from podlane.host.layout import (
    CLIENT_PORT,
    CLUSTER_ENVIRONMENT,
    CONFIG,
    ETCD_DATA,
    ETCD_METRICS,
    PEER_PORT,
    PKI,
    REVOCATION_LIST,
    STATE,
    Daemon,
    credentials,
    environment_file,
)
from podlane.host.machine import Machine
from podlane.host.options import InstallOptions
from podlane.host.steps import File
from podlane.host.units import loaded_files
from podlane.pki.profile import ETCD_PEER_HOSTNAME

ETCD_QUOTA = 8 << 30
"""Bytes: etcd's own advice for the most."""


def settings(options: InstallOptions, machine: Machine) -> list[File]:
    """One file for each daemon, where etcd is, and the operator's config.yaml on a server that made the cluster.

    With --join, etcd's URLs come from whoever admits this host, so that file is written then.
    """
    files = [_environment(daemon, _settings_of(daemon, options, machine)) for daemon in options.daemons]
    if options.own_etcd:
        files.append(_environment("snapshot", _snapshot(machine)))
    if endpoints := etcd_endpoints(options, machine):
        files.append(cluster_file(endpoints))
    if options.founds:
        files.append(File(CONFIG, _operator_config(etcd_endpoints(options, machine))))
    return files


def etcd_endpoints(options: InstallOptions, machine: Machine) -> tuple[str, ...]:
    """Empty when they are not known before this host has joined."""
    if options.etcd:
        return options.etcd
    return () if options.join else (client_url(machine.addresses[0]),)


def cluster_file(endpoints: tuple[str, ...]) -> File:
    return File(CLUSTER_ENVIRONMENT, f"# Written by podlane install.\nPODLANE_ETCD_ENDPOINTS={','.join(endpoints)}\n")


def client_url(address: str) -> str:
    return f"https://{_bracketed(address)}:{CLIENT_PORT}"


def peer_url(address: str) -> str:
    return f"https://{_bracketed(address)}:{PEER_PORT}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


_AGENT_API = {
    "AGENT_TLS_CERT_FILE": f"{PKI}/agent.pem",
    "AGENT_TLS_PRIVATE_KEY_FILE": f"{PKI}/agent.key",
    "AGENT_CLIENT_CA_FILE": f"{PKI}/ca.pem",
}


_HELP = {
    "etcd": "etcd",
    "join": "podlane host join-serve",
    "agent": "scheduler agent",
    "snapshot": "podlane etcd snapshot",
}


def _environment(daemon: str, values: Mapping[str, str]) -> File:
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    program = _HELP.get(daemon, f"{daemon} run")
    return File(environment_file(daemon), f"# Written by podlane install; see `{program} --help`.\n{lines}")


def _settings_of(daemon: Daemon, options: InstallOptions, machine: Machine) -> dict[str, str]:
    if daemon == "etcd":
        return _etcd(options, machine)
    own: dict[Daemon, dict[str, str]] = {
        "join": {"PODLANE_JOIN_NAME": machine.name, "PODLANE_JOIN_ADDRESS": ",".join(machine.addresses)},
        "scheduler": {"SCHEDULER_IDENTITY": machine.name},
        "netd": _netd(options, machine),
        "proxyd": {"NODE_NAME": machine.name},
        "agent": {
            "AGENT_NODE_NAME": machine.name,
            "AGENT_NODE_IP": machine.addresses[0],
            **(_AGENT_API if options.tls else {}),
        },
    }
    return {**(_certificates(daemon) if options.tls else {}), **own[daemon]}


def _certificates(daemon: Daemon) -> dict[str, str]:
    folder = credentials(daemon) if loaded_files(daemon) else PKI
    return {
        "PODLANE_ETCD_CAFILE": f"{folder}/ca.pem",
        "PODLANE_ETCD_CERTFILE": f"{folder}/{daemon}.pem",
        "PODLANE_ETCD_KEYFILE": f"{folder}/{daemon}.key",
    }


def _netd(options: InstallOptions, machine: Machine) -> dict[str, str]:
    """By address, not by name: it is what the node was admitted with."""
    second = {"NETD_PUBLIC_IPV6": machine.addresses[1]} if len(machine.addresses) > 1 else {}
    return {
        "NETD_NODE_NAME": machine.name,
        "NETD_IFACE": machine.addresses[0],
        **second,
        "NETD_STATE_DIR": f"{STATE}/netd",
        "NETD_IP_MASQ": str(options.ip_masq).lower(),
        "NETD_VXLAN_GUARD": "true",
    }


def _snapshot(machine: Machine) -> dict[str, str]:
    """Of the member here, whatever the others do. Of a server's certificates only the join service's is etcd's root."""
    return {
        "PODLANE_ETCD_ENDPOINTS": client_url("127.0.0.1"),
        "PODLANE_ETCD_CAFILE": f"{PKI}/ca.pem",
        "PODLANE_ETCD_CERTFILE": f"{PKI}/join.pem",
        "PODLANE_ETCD_KEYFILE": f"{PKI}/join.key",
        "PODLANE_ETCD_SNAPSHOT_NAME": machine.name,
    }


def _etcd(options: InstallOptions, machine: Machine) -> dict[str, str]:
    """Etcd takes all its settings from the environment."""
    folder, address = credentials("etcd"), machine.addresses[0]
    members = options.etcd_join or (f"{machine.name}={peer_url(address)}",)
    return {
        "ETCD_NAME": machine.name,
        "ETCD_DATA_DIR": ETCD_DATA,
        "ETCD_LISTEN_CLIENT_URLS": f"{client_url(address)},{client_url('127.0.0.1')}",
        "ETCD_ADVERTISE_CLIENT_URLS": client_url(address),
        "ETCD_LISTEN_PEER_URLS": peer_url(address),
        "ETCD_INITIAL_ADVERTISE_PEER_URLS": peer_url(address),
        "ETCD_INITIAL_CLUSTER": ",".join(members),
        "ETCD_INITIAL_CLUSTER_STATE": "existing" if options.etcd_join else "new",
        "ETCD_INITIAL_CLUSTER_TOKEN": "podlane",
        "ETCD_LISTEN_METRICS_URLS": ETCD_METRICS,
        "ETCD_TRUSTED_CA_FILE": f"{folder}/ca.pem",
        "ETCD_CERT_FILE": f"{folder}/etcd.pem",
        "ETCD_KEY_FILE": f"{folder}/etcd.key",
        "ETCD_CLIENT_CERT_AUTH": "true",
        "ETCD_PEER_TRUSTED_CA_FILE": f"{folder}/ca.pem",
        "ETCD_PEER_CERT_FILE": f"{folder}/etcd.pem",
        "ETCD_PEER_KEY_FILE": f"{folder}/etcd.key",
        "ETCD_PEER_CLIENT_CERT_AUTH": "true",
        "ETCD_PEER_CERT_ALLOWED_HOSTNAME": ETCD_PEER_HOSTNAME,
        # read at each connection
        "ETCD_CLIENT_CRL_FILE": REVOCATION_LIST,
        "ETCD_PEER_CRL_FILE": REVOCATION_LIST,
        # it would act with etcd's own certificate for whoever asks
        "ETCD_ENABLE_GRPC_GATEWAY": "false",
        "ETCD_AUTO_COMPACTION_MODE": "periodic",
        "ETCD_AUTO_COMPACTION_RETENTION": "1h",
        "ETCD_QUOTA_BACKEND_BYTES": str(ETCD_QUOTA),
        "ETCD_LOGGER": "zap",
        "ETCD_LOG_OUTPUTS": "stderr",
        # etcd 3.4 does not start on arm64 without it
        **({"ETCD_UNSUPPORTED_ARCH": "arm64"} if machine.arm64 else {}),
    }


def _operator_config(endpoints: tuple[str, ...]) -> str:
    listed = "".join(f"  - {each}\n" for each in endpoints)
    return (
        "# Written by podlane install: root's way into the cluster.\netcd:\n"
        f"  endpoints:\n{listed}"
        f"  cafile: {PKI}/ca.pem\n  certfile: {PKI}/root.pem\n  keyfile: {PKI}/root.key\n"
    )


def key_files(options: InstallOptions) -> tuple[str, ...]:
    """What must be below PKI before the daemons can start."""
    if not options.tls:
        return ()
    names: list[str] = list(options.daemons)
    if options.founds:
        names.append("root")
    own = ("ca.pem", *(f"{name}.{kind}" for name in names for kind in ("pem", "key")))
    return (*own, "ca.key", "ca.crt") if options.has_authority else own
