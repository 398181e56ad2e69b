"""How soon netd undoes each kind of damage.

Owns: the damages, and the judgement that all is right again. Invariants: the
time runs from the start of the command that does the damage, because netd may
have made a device anew before `ip link delete` is back; a round counts when
every entry, the device, its addresses and the firewall are as they were before,
not only what was damaged. What is looked at often is cheap (one peer's entries
by direct question), the rest is compared once that is well.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bench.hosts import BenchHostsError
from bench.netd_entries import Entries, LinkSample, dump, find_link, look_up
from bench.netd_leases import Peer, peers
from bench.netd_world import World, running, world
from bench.rows import Benchmark, Declared, Measured, Progress
from podlane.api.subnets import SubnetFile
from podlane.lab import network, process
from podlane.lab.topology import GATEWAY
from podlane.runtime.netlink import NETLINK_ROUTE, NetlinkSocket

ROUNDS = 5
TIMEOUT = 60.0
DIRECT, ENCAPSULATED = 20, 80
SCALE = 5000
DEVICE = "flannel.1"
PAUSE = 0.002  # seconds between two looks
REST = (1.0, 2.0)  # seconds between two rounds, so that none keeps step with a timer of netd's

DAMAGES: Mapping[str, tuple[str, str]] = {
    "route": ("ip route delete {subnet}", "a peer's route deleted"),
    "neighbour": ("ip neigh delete {vtep} dev {device}", "a peer's neighbour entry deleted"),
    "fdb": ("bridge fdb delete {mac} dev {device} dst {remote} self", "a peer's FDB entry deleted"),
    "address": ("ip address delete {own} dev {device}", "the device's address deleted"),
    "mtu": ("ip link set {device} mtu 1300", "the device's MTU changed"),
    "mac": ("ip link set {device} address 02:00:00:00:00:77", "the device's MAC address changed"),
    "link_down": ("ip link set {device} down", "the device taken down"),
    "device": ("ip link delete {device}", "the device deleted"),
    "uplink": (
        "ip link set eth0 down && ip link set eth0 up && ip route add default via {gateway}",
        "the uplink down and up, direct routes gone",
    ),
    "nft": ("{delete_tables}", "the nft table deleted"),
    "forward": ("{flush_chains}", "the iptables chain flushed"),
}
"""By name: the command, and what it does."""

FIREWALL = {"nft", "forward"}
LARGE = ("route", "device")
"""What is measured with 5,000 peers too: the least and the most there is to do."""


@dataclass(frozen=True, slots=True)
class Right:
    """A host as it should be. `firewall` is without order, which sets do not keep."""

    link: LinkSample | None
    entries: Entries
    firewall: tuple[str, ...]


class Patient:
    """The measured host, with what was right when netd had done its work."""

    def __init__(self, there: World, netd: process.Record, nl: NetlinkSocket) -> None:
        self._there = there
        self._netd = netd
        self._nl = nl
        # what netd programs last is not known: one peer of each kind must do
        self._sample = {k: v for peer in {p.direct: p for p in there.peers}.values() for k, v in peer.entries.items()}
        self._words = self._command_words()
        self._right = self._state()

    def heal(self, kind: str) -> float:
        """Damage the host; seconds until everything is right again."""
        damage, _ = DAMAGES[kind]
        begin = time.monotonic()
        self._run("sh", "-c", damage.format(**self._words))
        checked = False
        while True:
            at = time.monotonic()
            if self._firewall() == self._right.firewall if kind in FIREWALL else self._looks_right():
                right = self._state() == self._right
                if right:
                    # seen right at the first look: so it was when the look began
                    return (time.monotonic() if checked else at) - begin
                checked = True
            if at > begin + TIMEOUT or not process.alive(self._netd):
                raise self._there.hosts.failed(self._netd, f"heal {kind}: not right after {TIMEOUT:.0f} s")
            time.sleep(PAUSE)

    def _looks_right(self) -> bool:
        found = find_link(self._nl, DEVICE)
        if found is None or found[1] != self._right.link:
            return False
        return all(look_up(self._nl, found[0], entry) == value for entry, value in self._sample.items())

    def _state(self) -> Right:
        found = find_link(self._nl, DEVICE)
        return Right(found[1] if found is not None else None, dump(self._nl), self._firewall())

    def _firewall(self) -> tuple[str, ...]:
        """Every word of the rules; `-s` leaves out what counts packets."""
        rules = self._run("nft", "-s", "list", "ruleset") + self._run("iptables", "-w", "-S")
        return tuple(sorted(rules.replace(",", " ").split()))

    def _command_words(self) -> dict[str, str]:
        hosts, host = self._there.hosts, self._there.host
        victim: Peer = next(peer for peer in reversed(self._there.peers) if not peer.direct)
        subnet = SubnetFile.parse(hosts.subnet_file(host).read_text()).subnets.v4
        assert subnet is not None
        tables = re.findall(r"table (\S+ \S*podlane\S*)", self._run("nft", "list", "tables"))
        chains = re.findall(r"-N (PODLANE\S*)", self._run("iptables", "-w", "-S"))
        if not tables or not chains:
            raise BenchHostsError(f"find netd's rules: {len(tables)} nft tables and {len(chains)} iptables chains")
        return {
            "device": DEVICE,
            "subnet": str(victim.subnet),
            "vtep": str(victim.vtep),
            "mac": victim.mac,
            "remote": str(victim.public_ip),
            "own": f"{subnet.network_address}/32",
            "gateway": GATEWAY,
            "delete_tables": " && ".join(f"nft delete table {table}" for table in tables),
            "flush_chains": " && ".join(f"iptables -w -F {chain}" for chain in chains),
        }

    def _run(self, *argv: str) -> str:
        return self._there.hosts.run(self._there.host, *argv)


@contextmanager
def patient(some: Sequence[Peer], backend: Mapping[str, object] | None = None) -> Iterator[Patient]:
    """A host whose netd has these peers, masquerades, and came to rest."""
    with world(some, backend) as there, running(there, "--ip-masq") as (netd, _):
        with network.inside(there.hosts.netns(there.host)):
            nl = NetlinkSocket(NETLINK_ROUTE)
        with nl:
            yield Patient(there, netd, nl)


def heal(host: Patient, kinds: Sequence[str], say: Progress, suffix: str = "") -> Iterator[Measured]:
    rng = random.Random(0)
    for kind in kinds:
        samples: list[float] = []
        for _ in range(ROUNDS):
            time.sleep(rng.uniform(*REST))
            samples.append(host.heal(kind))
        say(f"{kind}: {' '.join(f'{seconds:.3f}' for seconds in samples)} s")
        yield Measured.median(f"netd.heal_{kind}{suffix}", samples)


def measure(say: Progress) -> Iterator[Measured]:
    """Every kind, with a fifth of the peers on the host's own segment and routed to directly."""
    some = (*peers(0, DIRECT, direct=True), *peers(DIRECT, ENCAPSULATED))
    with patient(some, {"DirectRouting": True}) as host:
        yield from heal(host, tuple(DAMAGES), say)


def measure_large(say: Progress) -> Iterator[Measured]:
    with patient(peers(0, SCALE)) as host:
        yield from heal(host, LARGE, say, f"_{SCALE}")


BENCHMARKS = (
    Benchmark(
        "netd",
        tuple(
            Declared(f"netd.heal_{kind}", "seconds", f"{about} → right again, 100 peers", aim=1.0)
            for kind, (_, about) in DAMAGES.items()
        ),
        measure,
    ),
    Benchmark(
        "netd",
        tuple(
            Declared(f"netd.heal_{kind}_{SCALE}", "seconds", f"{DAMAGES[kind][1]} → right again, 5,000 peers", aim=1.0)
            for kind in LARGE
        ),
        measure_large,
    ),
)
