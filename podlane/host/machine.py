"""What `install` must know of the machine it runs on.

Owns: the facts and how they are observed. Invariant: looking changes nothing.
The interface is chosen as netd chooses it (netd.underlay), so that the address
in certificates and in etcd's settings is the one the overlay uses.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from netd.underlay import NoUnderlay, UnderlayWish, choose_underlay
from podlane.errors import UsageError
from podlane.host.firewall import ANYWHERE
from podlane.host.options import InstallOptions, name_error
from podlane.host.system import System

if TYPE_CHECKING:
    from netd.model import Interface
    from podlane.api.subnets import Address

_NO_ZONE = 2
"""firewall-cmd's exit code for an interface that is in none; with another, it has not answered."""

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Machine:
    """`etcd` is the path of the program, "" without one. `addresses` are what others reach this host by.

    `zone` is firewalld's, for what they send (firewall.ANYWHERE for all of them), "" where it does not answer.
    """

    name: str
    addresses: tuple[str, ...]
    iface: str
    why: str = ""
    etcd: str = ""
    restorecon: str = ""
    selinux: str = "disabled"
    opt_is_link: bool = False
    zone: str = ""
    network_manager: bool = False
    arm64: bool = False

    @property
    def labels(self) -> bool:
        """Whether files have SELinux labels that can be set."""
        return self.restorecon != "" and self.selinux != "disabled"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is installed: an unpacked bundle. `digest` is of all that is in it.

    `python` is the program that the environment is made with, of version `abi`; `compiled`: the packages are, for it.
    """

    folder: str
    version: str
    digest: str
    python: str
    abi: str = "3.11"
    compiled: bool = True
    with_etcd: bool = False
    with_python: bool = False

    @property
    def name(self) -> str:
        """Of its folder: two builds of one version are two."""
        return f"{self.version}-{self.digest[:8]}"


class Network(Protocol):
    """The part of netd's kernel that is asked here."""

    def interfaces(self) -> tuple[Interface, ...]: ...

    def route_to(self, address: Address) -> str: ...


def program(name: str) -> str:
    """Its path, "" when there is none."""
    return shutil.which(name, path=SEARCHED) or ""


def observe(
    options: InstallOptions, system: System, network: Network, *, find: Callable[[str], str] = program
) -> Machine:
    """Raises UsageError when the name or the address cannot be told, saying which option tells it."""
    name = options.name or os.uname().nodename
    if error := name_error(name):
        raise UsageError(f"--name: the host's name will not do, give another: {error}")
    addresses, _, why = choose_address(options, network)
    return replace(as_installed(name, addresses, system, network, find=find), why=why)


def as_installed(
    name: str,
    addresses: tuple[str, ...],
    system: System,
    network: Network,
    *,
    find: Callable[[str], str] = program,
) -> Machine:
    """The same where it is known what it is called and reached by."""
    iface = next((each.name for each in network.interfaces() if addresses[0] in _ips(each)), "")
    return Machine(
        name=name,
        addresses=addresses,
        iface=iface,
        etcd=find("etcd"),
        restorecon=find("restorecon"),
        selinux=selinux(),
        opt_is_link=_is_link(system, "/opt"),
        zone=_zone(system, iface) if is_active(system, "firewalld.service") else "",
        network_manager=system.look("/etc/NetworkManager/conf.d") is not None,
        arm64=platform.machine() == "aarch64",
    )


def choose_address(options: InstallOptions, network: Network) -> tuple[tuple[str, ...], str, str]:
    """The addresses, the interface that has the first, and why it is that. Raises UsageError."""
    interfaces = network.interfaces()
    own = {ip: each.name for each in interfaces for ip in _ips(each)}
    if options.addresses:
        if options.addresses[0] not in own:
            raise UsageError(
                f"--address: {options.addresses[0]} is none of this host's; it has {', '.join(own) or 'none'}"
            )
        return options.addresses, own[options.addresses[0]], "--address"
    wish = UnderlayWish(ifaces=(options.iface,) if options.iface else ())
    reach = peers(options)
    try:
        chosen = choose_underlay(interfaces, wish, reach=reach, route_to=network.route_to)
    except NoUnderlay as error:
        raise UsageError(str(error).replace("--iface", "--iface or --address")) from error
    found = chosen.v4 or chosen.v6
    assert found is not None, "an interface without an address is not chosen"
    why = "--iface" if options.iface else _reason(reach, interfaces, chosen.name)
    return (str(found.ip),), chosen.name, why


def _ips(interface: Interface) -> tuple[str, ...]:
    return tuple(str(address.ip) for address in interface.addresses)


def _reason(reach: Sequence[Address], interfaces: Iterable[Interface], name: str) -> str:
    if reach:
        return f"leads to {reach[0]}"
    metric = next(each.default_metric for each in interfaces if each.name == name)
    return "the only one that fits" if metric is None else "has the default route"


def peers(options: InstallOptions) -> tuple[Address, ...]:
    """Addresses that this host must reach: the join service's, etcd's. A name that cannot be resolved is left out."""
    from podlane.store.config import StoreConfig, resolve

    urls = (
        *options.etcd,
        *((options.join,) if options.join else ()),
        *(m.partition("=")[2] for m in options.etcd_join),
    )
    found: list[Address] = []
    for url in filter(None, urls):
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
        try:
            found.append(ip_address(host))
        except ValueError:
            found += resolve(StoreConfig(endpoints=(url,)))
    return tuple(found)


def selinux() -> str:
    try:
        return "enforcing" if Path("/sys/fs/selinux/enforce").read_text().strip() == "1" else "permissive"
    except OSError:
        return "disabled"


def _is_link(system: System, path: str) -> bool:
    found = system.look(path)
    return found is not None and found.kind == "link"


def _zone(system: System, iface: str) -> str:
    asked = ["firewall-cmd", f"--get-zone-of-interface={iface}"]
    done = system.run(asked, timeout=60, check=False)
    return done.stdout.strip() if done.returncode != _NO_ZONE else ANYWHERE


def is_active(system: System, unit: str) -> bool:
    return system.run(["systemctl", "is-active", "--quiet", unit], timeout=30, check=False).returncode == 0
