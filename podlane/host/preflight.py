"""Whether a host can become what is asked, judged before anything is changed. Pure.

Owns: the checks, their words, and the remedy for each. Invariant: what is `missing`
would make an installation fail or a pod unreachable; a `warning` is something an
operator should know. survey.py looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from podlane.host.options import InstallOptions, name_error

State = Literal["ok", "warning", "missing"]

MEGABYTE = 1 << 20
_ROOM = {"/opt": 400 * MEGABYTE, "/var/lib": 2048 * MEGABYTE}
_DOCKER, _NFT, _SYSTEMD = (20, 10), (1, 0), (247,)
NAT_ADDRESS = "10.0.2.15"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. Texts are programs' own version lines, "" where a program is not there or does not answer.

    `network` is which interface and address would be used, and why; or the error that says why none.
    `apparmor_parser` says whether that program is there; None where the kernel does not enforce AppArmor.
    `busy` are ports of ours that another program listens on. `room` is bytes free by folder.
    """

    name: str = ""
    kernel: str = ""
    kernel_lacks: tuple[str, ...] = ()
    python: str = ""
    systemd: str = ""
    nft: str = ""
    iptables: str = ""
    conntrack: str = ""
    docker: str = ""
    docker_error: str = ""
    docker_cgroup: str = ""
    apparmor_parser: bool | None = None
    etcd: str = ""
    bundled_etcd: bool = False
    network: str = ""
    network_error: str = ""
    default_address: str = ""
    busy: tuple[str, ...] = ()
    clock_synchronized: bool | None = None
    machine_id: str = ""
    room: dict[str, int] = field(default_factory=dict)
    swap: int = 0
    selinux: str = "disabled"
    restorecon: bool = True
    firewalld: bool = False
    read_only: tuple[str, ...] = ()


def judge(options: InstallOptions, survey: Survey) -> list[Check]:
    """Every check that concerns the role, in the order one would mend them."""
    checks = [*_system(survey), *_kernel(options, survey), *_programs(options, survey), *_network(survey)]
    return [*checks, *_host(options, survey)]


def missing(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.state == "missing"]


def version_of(text: str) -> tuple[int, ...]:
    """The first number with dots in a version line."""
    found = re.search(r"(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def _atleast(name: str, text: str, least: tuple[int, ...], remedy: str) -> Check:
    wanted = ".".join(map(str, least))
    if not text:
        return Check(name, "missing", "not found", remedy)
    have = version_of(text)
    shown = ".".join(map(str, have)) or text
    return Check(name, "ok", shown) if have >= least else Check(name, "missing", f"{shown}, needs {wanted}", remedy)


def _system(survey: Survey) -> Iterator[Check]:
    yield _atleast("systemd", survey.systemd, _SYSTEMD, "Podlane's daemons are systemd units; use a host that has it")
    yield Check("python", "ok", survey.python)
    for path in survey.read_only:
        instead = ", or let it be a link to /var/opt" if path == "/opt" else ""
        yield Check(path, "missing", "read-only", f"mount it writable{instead}; only /usr may be read-only")


def _kernel(options: InstallOptions, survey: Survey) -> Iterator[Check]:
    if options.role == "server":
        return
    remedy = "use a kernel that has it, such as Debian's linux-image-amd64 (not the cloud variant)"
    for each in survey.kernel_lacks:
        yield Check("kernel", "missing", f"{survey.kernel} lacks {each}", remedy)
    if not survey.kernel_lacks:
        yield Check("kernel", "ok", f"{survey.kernel}: bridge, veth, VXLAN, nftables, overlay")


def _programs(options: InstallOptions, survey: Survey) -> Iterator[Check]:
    if options.role != "server":
        yield _atleast("nft", survey.nft, _NFT, "install nftables, 1.0 or later")
        yield _present("iptables", survey.iptables, "install iptables: Docker and netd need it")
        if not survey.conntrack:
            yield Check("conntrack", "warning", "not found", "install conntrack to look at connections; optional")
        yield _docker(survey)
    if options.own_etcd:
        etcd = f"in the bundle ({survey.etcd or 'none on the host'})" if survey.bundled_etcd else survey.etcd
        remedy = "install etcd (Debian: etcd-server), or use a bundle made with --with-etcd"
        yield _present("etcd", etcd, remedy)


def _present(name: str, text: str, remedy: str) -> Check:
    return Check(name, "ok", text) if text else Check(name, "missing", "not found", remedy)


def _docker(survey: Survey) -> Check:
    if survey.docker_error:
        remedy = "install Docker 20.10 or later and start it: systemctl enable --now docker"
        return Check("docker", "missing", survey.docker_error, remedy)
    if survey.apparmor_parser is False:
        detail = "the kernel has AppArmor and apparmor_parser is not found: Docker starts no container so"
        return Check("docker", "missing", detail, "install the package apparmor, and restart Docker")
    check = _atleast("docker", survey.docker, _DOCKER, "install Docker 20.10 or later")
    if check.state == "ok" and survey.docker_cgroup:
        return Check("docker", "ok", f"{check.detail}, cgroup {survey.docker_cgroup}")
    return check


def _network(survey: Survey) -> Iterator[Check]:
    if survey.network_error:
        yield Check("network", "missing", survey.network_error, "name the interface to the other hosts with --iface")
    else:
        yield Check("network", "ok", survey.network)
    if survey.default_address == NAT_ADDRESS and not survey.network_error:
        detail = f"the default route's interface has {NAT_ADDRESS}, as every such virtual machine has"
        yield Check("NAT", "ok" if NAT_ADDRESS not in survey.network else "missing", detail, _nat_remedy(survey))
    for port in survey.busy:
        remedy = "stop what listens there (ss -ltnp says who; Debian's own etcd: systemctl disable --now etcd)"
        yield Check("ports", "missing", f"{port} is taken", remedy)
    if not survey.busy:
        yield Check("ports", "ok", "free")


def _nat_remedy(survey: Survey) -> str:
    if NAT_ADDRESS in survey.network:
        return "give the machine a network that the others are on, and name it with --iface"
    return ""


def _selinux(survey: Survey) -> Check:
    if survey.restorecon:
        return Check("SELinux", "ok", survey.selinux, "labels are set with restorecon; see docs/install.md")
    detail = f"{survey.selinux}, and restorecon is not found: what is unpacked would have labels of /var/tmp"
    remedy = "install the package policycoreutils"
    return Check("SELinux", "missing" if survey.selinux == "enforcing" else "warning", detail, remedy)


def _host(options: InstallOptions, survey: Survey) -> Iterator[Check]:
    error = name_error(options.name or survey.name)
    if error:
        yield Check("name", "missing", error, "give another with --name, or: hostnamectl set-hostname NAME")
    else:
        yield Check("name", "ok", options.name or survey.name)
    if not survey.machine_id:
        detail = "/etc/machine-id is empty"
        yield Check("machine id", "warning", detail, "systemd-machine-id-setup; copies of one image need one each")
    if survey.clock_synchronized is False:
        remedy = "start chrony or systemd-timesyncd: certificates and logs go by the time"
        yield Check("time", "warning", "not synchronized", remedy)
    for folder, needed in _ROOM.items():
        free = survey.room.get(folder, needed)
        if free < needed:
            detail = f"{free // MEGABYTE} MB free, needs {needed // MEGABYTE}"
            yield Check(f"disk {folder}", "missing" if folder == "/opt" else "warning", detail, "make room")
    if survey.swap and options.role != "server":
        detail = f"{survey.swap // MEGABYTE} MB"
        yield Check("swap", "warning", detail, "memory limits of pods do not count what is swapped: swapoff -a")
    if survey.selinux != "disabled":
        yield _selinux(survey)
    if survey.firewalld and not options.firewalld:
        yield Check("firewalld", "warning", "active", "--firewalld opens what is needed; install says what that is")
