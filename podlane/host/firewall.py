"""What firewalld must let through. Pure.

Owns: the list of ports. Pod traffic is trusted by its interfaces, since a node does
not know the pods' network before it has joined. netd and proxyd have nftables
tables of their own, which neither firewalld nor nftables.service touches, unless a
/etc/nftables.conf begins with `flush ruleset`.
"""

from __future__ import annotations

from collections.abc import Iterator

from podlane.host.layout import CLIENT_PORT, JOIN_PORT, PEER_PORT
from podlane.host.options import InstallOptions
from podlane.host.steps import Command

VXLAN_PORT = 8472
AGENT_PORT = 10250
TRUSTED = ("flannel.1", "podlane0")
_RELOAD = ("firewall-cmd", "--reload")


def ports(options: InstallOptions) -> tuple[str, ...]:
    """As firewalld writes them: what other hosts must reach here."""
    found: list[str] = []
    if options.own_etcd:
        found += [f"{CLIENT_PORT}-{PEER_PORT}/tcp"]
    if options.has_authority:
        found += [f"{JOIN_PORT}/tcp"]
    if options.role != "server":
        found += [f"{VXLAN_PORT}/udp", f"{AGENT_PORT}/tcp"]
    return tuple(found)


def commands(options: InstallOptions) -> Iterator[tuple[str, ...]]:
    for port in ports(options):
        yield ("firewall-cmd", "--permanent", f"--add-port={port}")
    if options.role != "server":
        for interface in TRUSTED:
            yield ("firewall-cmd", "--permanent", "--zone=trusted", f"--add-interface={interface}")


def steps(options: InstallOptions) -> Iterator[Command]:
    for argv in commands(options):
        undo = tuple(word.replace("--add-", "--remove-") for word in argv)
        yield Command(argv, undo=(undo, _RELOAD), timeout=60)
    yield Command(_RELOAD, timeout=60)


def notes(options: InstallOptions) -> tuple[str, ...]:
    """For a host where firewalld runs and it was not asked to be changed."""
    listed = [" ".join(argv) for argv in (*commands(options), _RELOAD)]
    return ("firewalld runs here; --firewalld does this, or do it by hand:", *(f"    {each}" for each in listed))


def removal(options: InstallOptions) -> Iterator[Command]:
    for argv in commands(options):
        yield Command(tuple(word.replace("--add-", "--remove-") for word in argv), timeout=60, may_fail=True)
    yield Command(_RELOAD, timeout=60, may_fail=True)
