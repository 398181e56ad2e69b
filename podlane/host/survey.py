"""Look at a host for preflight. Changes nothing, but that kernel modules may be loaded.

Owns: which programs are asked and which files are read. Invariant: what cannot be
told is told as such; no single question fails the survey.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from podlane.errors import PodlaneError, UsageError
from podlane.host import layout, trykernel
from podlane.host.firewall import AGENT_PORT
from podlane.host.machine import Network, choose_address, is_active, program, selinux
from podlane.host.options import InstallOptions
from podlane.host.preflight import Survey
from podlane.host.system import System

_TIMEOUT = 30.0


def survey(options: InstallOptions, system: System, network: Network, *, bundled_etcd: bool = False) -> Survey:
    chosen, network_error = _network(options, network)
    docker, docker_error, cgroup = _docker(system) if options.role != "server" else ("", "", "")
    return Survey(
        name=os.uname().nodename,
        kernel=platform.release(),
        kernel_lacks=_kernel(system) if options.role != "server" else (),
        python=platform.python_version(),
        systemd=_first_line(system, "systemctl", "--version"),
        nft=_first_line(system, "nft", "--version"),
        iptables=_first_line(system, "iptables", "--version"),
        conntrack=_first_line(system, "conntrack", "--version"),
        docker=docker,
        docker_error=docker_error,
        docker_cgroup=cgroup,
        apparmor_parser=_apparmor_parser(),
        etcd=_first_line(system, "etcd", "--version"),
        bundled_etcd=bundled_etcd,
        network=chosen,
        network_error=network_error,
        default_address=_default_address(network),
        busy=_busy(options, system),
        clock_synchronized=_synchronized(system),
        machine_id=_read("/etc/machine-id"),
        room=_room(),
        swap=_swap(),
        selinux=selinux(),
        restorecon=bool(program("restorecon")),
        firewalld=is_active(system, "firewalld.service"),
        read_only=tuple(path for path in ("/etc", "/opt", "/var/lib") if not os.access(there(path), os.W_OK)),
    )


def _first_line(system: System, *argv: str) -> str:
    path = program(argv[0])
    if not path:
        return ""
    with suppress(PodlaneError):
        done = system.run([path, *argv[1:]], timeout=_TIMEOUT, check=False)
        if done.returncode == 0:
            return next(iter((done.stdout or done.stderr).splitlines()), "")
    return ""


def _kernel(system: System) -> tuple[str, ...]:
    try:
        return trykernel.lacking(system)
    except PodlaneError as error:
        return (f"network namespaces ({error})",)


def _network(options: InstallOptions, network: Network) -> tuple[str, str]:
    try:
        addresses, iface, why = choose_address(options, network)
    except UsageError as error:
        return "", str(error)
    return f"{', '.join(addresses)} on {iface} ({why})", ""


def _default_address(network: Network) -> str:
    """Of the interface with the best default route."""
    routed = [each for each in network.interfaces() if each.default_metric is not None]
    for interface in sorted(routed, key=lambda each: each.default_metric or 0):
        return next((str(address.ip) for address in interface.addresses if address.version == 4), "")
    return ""


def _docker(system: System) -> tuple[str, str, str]:
    """Version, error, cgroup driver and version."""
    if not program("docker"):
        return "", "not found", ""
    form = "{{.ServerVersion}} {{.CgroupDriver}} v{{.CgroupVersion}}"
    try:
        done = system.run(["docker", "info", "--format", form], timeout=_TIMEOUT, check=False)
    except PodlaneError as error:
        return "", str(error), ""
    version, _, cgroup = done.stdout.strip().partition(" ")
    if done.returncode != 0 or not version:
        return "", (done.stderr.strip().splitlines() or ["it does not answer"])[-1], ""
    return version, "", cgroup


def _apparmor_parser() -> bool | None:
    if _read("/sys/module/apparmor/parameters/enabled") != "Y":
        return None
    return bool(program("apparmor_parser"))


def _busy(options: InstallOptions, system: System) -> tuple[str, ...]:
    """Of our ports, those of daemons that do not run yet and that cannot be bound."""
    ports = {
        "etcd": (layout.CLIENT_PORT, layout.PEER_PORT, 2381),
        "join": (layout.JOIN_PORT, 10262),
        "scheduler": (10259,),
        "netd": (10457,),
        "proxyd": (10256,),
        "agent": (AGENT_PORT, 10248),
    }
    waiting = [each for each in options.daemons if not is_active(system, layout.unit_name(each))]
    return tuple(f"{port}/tcp ({daemon})" for daemon in waiting for port in ports[daemon] if _taken(port))


def _taken(port: int) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                if error.errno == 98:  # EADDRINUSE
                    return True
    return False


def _synchronized(system: System) -> bool | None:
    with suppress(PodlaneError):
        done = system.run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"], timeout=_TIMEOUT, check=False)
        return {"yes": True, "no": False}.get(done.stdout.strip())
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def there(path: str) -> str:
    """The folder, or where it would be made; /opt may be a link to a /var/opt that is still to come."""
    at = Path(path).resolve()
    return str(next(each for each in (at, *at.parents) if each.exists()))


def _room(folders: Sequence[str] = ("/opt", "/var/lib")) -> dict[str, int]:
    return {folder: shutil.disk_usage(there(folder)).free for folder in folders}


def _swap() -> int:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("SwapTotal:"):
            return int(line.split()[1]) * 1024
    return 0
