"""A lab's wires: namespaces, the underlay bridge, and the faults put on it.

Invariant: building twice changes nothing, and removing removes exactly the
namespaces whose name begins with the lab's prefix; interfaces die with them.
Cutting a host is a switch port that drops every frame, parting two a switch
that drops those from one to the other: nft sets in the underlay's namespace
hold the ports, so a fault is state that can be listed, and the hosts themselves
keep their links, addresses and routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from podlane.lab.topology import GATEWAY, GATEWAY6, NETNS_ROOT, Host, Topology, netns_path
from podlane.runtime import namespace
from podlane.runtime.command import run

FAULT_TABLE = "podlane_fault"


def enter(netns: str) -> None:
    """Move the calling thread, and threads it starts from now on, into a namespace for good."""
    namespace.enter(netns_path(netns))


def inside(netns: str) -> AbstractContextManager[None]:
    """Run the block's thread in a namespace; sockets opened there stay there."""
    return namespace.inside(netns_path(netns))


def within(netns: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace and nothing else changed.

    `ip netns exec` would also remount /sys, which hides the cgroup mounts that dockerd needs.
    """
    return ["nsenter", f"--net={netns_path(netns)}", "--", *argv]


def namespaces(prefix: str) -> list[str]:
    """Names of existing namespaces that begin with `prefix`."""
    if not NETNS_ROOT.is_dir():
        return []
    return sorted(p.name for p in NETNS_ROOT.iterdir() if p.name.startswith(prefix))


def build(lab: Topology) -> int:
    """Make what is missing of the namespaces, the bridge and the links; return how many hosts are new."""
    existing = set(namespaces(lab.prefix))
    if lab.underlay not in existing:
        run(["ip", "netns", "add", lab.underlay], timeout=10)
    _batch(
        lab.underlay,
        [
            *(["link add br0 type bridge"] if not _has_link(lab.underlay, "br0") else []),
            "link set lo up",
            "link set br0 up",
            f"address replace {GATEWAY}/24 dev br0",
            *([f"address replace {GATEWAY6}/64 dev br0 nodad"] if lab.dual_stack else []),
        ],
    )
    run(within(lab.underlay, ["nft", "-f", "-"]), input=_fault_rules(), timeout=10)
    new = 0
    for host in lab.hosts:
        netns = lab.netns(host)
        if netns not in existing:
            run(["ip", "netns", "add", netns], timeout=10)
        if not _has_link(netns, "eth0"):
            new += 1
            _batch(lab.underlay, [f"link add {host.name} type veth peer name eth0 netns {netns}"])
        _batch(lab.underlay, [f"link set {host.name} master br0 up"])
        _batch(
            netns,
            [
                "link set lo up",
                "link set eth0 up",
                f"address replace {host.address}/24 dev eth0",
                f"route replace default via {GATEWAY}",
                *(_dual_stack(host) if lab.dual_stack else []),
            ],
        )
    return new


def _dual_stack(host: Host) -> list[str]:
    """A host's IPv6, usable at once: nobody else has its address."""
    return [f"address replace {host.address6}/64 dev eth0 nodad", f"route replace ::/0 via {GATEWAY6}"]


def destroy(lab: Topology) -> int:
    """Remove the lab's namespaces, whatever state they are in; return how many there were."""
    found = namespaces(lab.prefix)
    for netns in found:
        run(["ip", "netns", "delete", netns], timeout=20)
    return len(found)


def cut(lab: Topology, host: Host) -> None:
    """Drop every frame from and to a host, until `join`."""
    _fault(lab, "add", "cut", [f'"{host.name}"'])


def part(lab: Topology, host: Host, other: Host) -> None:
    """Drop every frame between two hosts, until either is joined again."""
    _fault(lab, "add", "parted", _pairs((host.name, other.name)))


def join(lab: Topology, host: Host) -> None:
    """Undo `cut` and `part`; no error where there is nothing to undo."""
    if host.name in cut_hosts(lab):
        _fault(lab, "delete", "cut", [f'"{host.name}"'])
    for pair in parted_hosts(lab):
        if host.name in pair:
            _fault(lab, "delete", "parted", _pairs(pair))


def cut_hosts(lab: Topology) -> frozenset[str]:
    """Names of the hosts that are cut off now."""
    names = {h.name for h in lab.hosts}
    return frozenset(name for (name,) in _faults(lab, "cut") if name in names)


def parted_hosts(lab: Topology) -> frozenset[tuple[str, str]]:
    """The pairs of hosts that are parted now, each pair once, in the order of their names."""
    return frozenset((one, other) for one, other in _faults(lab, "parted") if one < other)


def pids(netns: str) -> list[int]:
    """Processes that live in a namespace."""
    try:
        wanted = netns_path(netns).stat()
    except FileNotFoundError:
        return []
    found = []
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit():
            continue
        try:
            own = (proc / "ns/net").stat()
        except OSError:  # it ended meanwhile
            continue
        if (own.st_dev, own.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(proc.name))
    return found


def _batch(netns: str, lines: list[str]) -> None:
    run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines) + "\n", timeout=10)


def _has_link(netns: str, link: str) -> bool:
    return run(["ip", "-n", netns, "link", "show", link], timeout=10, check=False).returncode == 0


def _fault(lab: Topology, verb: str, kind: str, elements: list[str]) -> None:
    command = f"{verb} element bridge {FAULT_TABLE} {kind} {{ {', '.join(elements)} }}"
    run(within(lab.underlay, ["nft", command]), timeout=10)


def _faults(lab: Topology, kind: str) -> list[tuple[str, ...]]:
    """The elements of a fault's set, each a port or a pair of ports."""
    listed = run(within(lab.underlay, ["nft", "-j", "list", "set", "bridge", FAULT_TABLE, kind]), timeout=10).stdout
    found = next(entry["set"] for entry in msgspec.json.decode(listed)["nftables"] if "set" in entry)
    return [tuple(each["concat"]) if isinstance(each, dict) else (each,) for each in found.get("elem", [])]


def _pairs(pair: tuple[str, str]) -> list[str]:
    """Both directions."""
    one, other = pair
    return [f'"{one}" . "{other}"', f'"{other}" . "{one}"']


def _fault_rules() -> str:
    chains = "".join(
        f"""
        add chain bridge {FAULT_TABLE} {hook} {{ type filter hook {hook} priority 0; }}
        flush chain bridge {FAULT_TABLE} {hook}
        """
        for hook in ("forward", "input", "output")
    )
    return f"""
        add table bridge {FAULT_TABLE}
        add set bridge {FAULT_TABLE} cut {{ type ifname; }}
        add set bridge {FAULT_TABLE} parted {{ type ifname . ifname; }}
        {chains}
        add rule bridge {FAULT_TABLE} forward iifname @cut drop
        add rule bridge {FAULT_TABLE} forward oifname @cut drop
        add rule bridge {FAULT_TABLE} forward iifname . oifname @parted drop
        add rule bridge {FAULT_TABLE} input iifname @cut drop
        add rule bridge {FAULT_TABLE} output oifname @cut drop
    """
