"""What firewalld must let through. Pure.

Owns: a zone for the pods' interfaces and two policies, each a file of our own, so
that removing it undoes it and nobody's zone is changed (firewalld.zone(5),
firewalld.policies(5), since 0.9). Pods are trusted by their interfaces, since a
node does not know the pods' network before it has joined. netd and proxyd have
nftables tables of their own, which neither firewalld nor nftables.service touches,
unless a /etc/nftables.conf begins with `flush ruleset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from podlane.host.layout import CLIENT_PORT, JOIN_PORT, PEER_PORT
from podlane.host.options import InstallOptions
from podlane.host.steps import Command, File, Step

VXLAN_PORT = 8472
AGENT_PORT = 10250
INTERFACES = ("flannel+", "podlane0")
"""`+`: whatever follows; flannel.1, flannel-v6.1."""

FOLDER = "/etc/firewalld"
ZONE = f"{FOLDER}/zones/podlane.xml"
HOST_POLICY = f"{FOLDER}/policies/podlane-host.xml"
PODS_POLICY = f"{FOLDER}/policies/podlane-pods.xml"
FILES = (ZONE, HOST_POLICY, PODS_POLICY)
ANYWHERE = "ANY"
"""firewalld's word for every zone, and the only one that includes interfaces that are in none (seen with 1.3)."""

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


def files(options: InstallOptions, zone: str) -> Iterator[File]:
    """`zone` is the one that others come in by, or ANYWHERE; none for "", where firewalld does not run."""
    if not options.firewalld or not zone:
        return
    split = (each.split("/") for each in ports(options))
    opened = [f'<port port="{port}" protocol="{protocol}"/>' for port, protocol in split]
    if opened:
        yield File(HOST_POLICY, _policy("Podlane: this host's services", zone, "HOST", "CONTINUE", opened))
    if options.role != "server":
        interfaces = [f'<interface name="{each}"/>' for each in INTERFACES]
        yield File(ZONE, _xml("zone", "ACCEPT", "Podlane: the pods", interfaces))
        # with host-gw, packets of other hosts' pods come as they are
        yield File(PODS_POLICY, _policy("Podlane: packets to the pods", zone, "podlane", "ACCEPT", []))


def _policy(title: str, ingress: str, egress: str, target: str, rules: Iterable[str]) -> str:
    return _xml(
        "policy", target, title, [f'<ingress-zone name="{ingress}"/>', f'<egress-zone name="{egress}"/>', *rules]
    )


def _xml(kind: str, target: str, title: str, lines: Iterable[str]) -> str:
    inside = "".join(f"  {line}\n" for line in (f"<short>{title}</short>", *lines))
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!-- Written by podlane install. -->\n'
    return f'{head}<{kind} target="{target}">\n{inside}</{kind}>\n'


def steps(changed: Iterable[File]) -> Iterator[Step]:
    """Of the changed files those that are firewalld's, and what brings them into effect."""
    mine = [each for each in changed if each.path in FILES]
    if mine:
        # does nothing but fail where it does not run; what it undoes comes after the files are the old ones
        yield Command(("firewall-cmd", "--state"), undo=(_RELOAD,), timeout=60)
        yield from mine
        yield Command(_RELOAD, timeout=60)


def notes(options: InstallOptions, zone: str) -> tuple[str, ...]:
    """For a host where firewalld runs and it was not asked to be changed."""
    where = "" if zone == ANYWHERE else f" in zone {zone}"
    needed = [f"{', '.join(opened)} open{where}"] if (opened := ports(options)) else []
    if options.role != "server":
        needed.append(f"interfaces {' and '.join(INTERFACES)} trusted")
    return (f"firewalld runs here. Podlane needs {'; '.join(needed)}. The same again with --firewalld sees to it",)


def removal(paths: Iterable[str]) -> Iterator[Step]:
    """After the files were removed; `paths` are those that were there."""
    if any(each in FILES for each in paths):
        yield Command(_RELOAD, timeout=60, may_fail=True)
