"""What probes are sent to, and what came back: plain values between probing and judging.

Owns: a peer's VTEP as its lease describes it, the kinds of probe, and the
tallies. Invariant: these record what was seen and conclude nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from netd.desired import Family
from netd.doctor.wire import Place
from podlane.api.subnets import Address


class Kind(StrEnum):
    """How a probe goes, and how its answer comes back. All but PLAIN ask the peer's VTEP address."""

    PLAIN = "plain"
    """Echo to the public address, nothing encapsulated either way."""

    VXLAN = "vxlan"
    """Echo encapsulated by us, past our own overlay; the answer comes by the peer's overlay."""

    FULL = "full"
    """The same, as large as the device's MTU, which the network may not fragment."""

    SIZED = "sized"
    """The same in other sizes, to find the largest that passes."""

    KERNEL = "kernel"
    """Echo by this host's own routes, neighbours and FDB, as a program would send it."""

    BACK_PLAIN = "back-plain"
    """Encapsulated, but from our underlay address, so that the answer comes without VXLAN."""

    BACK_VXLAN = "back-vxlan"
    """Not encapsulated, but from our VTEP address, so that the answer comes by VXLAN."""

    BROADCAST = "broadcast"
    """As VXLAN, but to the broadcast MAC address: reaches a device with any MAC address."""

    ARP = "arp"
    """Who has the VTEP address, within VXLAN."""

    FORWARDED = "forwarded"
    """Encapsulated, to our own VTEP address: a peer that forwards sends it back to us."""

    BARE = "bare"
    """A UDP datagram without a checksum to a closed port: the ICMP error quotes what arrived."""

    BARE_FULL = "bare-full"
    """The same, as large as the device's MTU: its answer is small."""

    SUMMED = "summed"
    """A UDP datagram sent by the kernel, checksum and all, by whatever makes checksums here."""


@dataclass(frozen=True, slots=True)
class Target:
    """A peer's VTEP of one family. `remote` and `local` are the outer addresses, `over` their family.

    `public` and `own_public` are the hosts' addresses of the inner family, if
    both have one. `direct`: netd routes this peer's subnet without VXLAN.
    """

    peer: str
    family: Family
    remote: Address
    local: Address
    vtep: Address
    mac: str
    own_vtep: Address
    own_mac: str
    vni: int
    port: int
    mtu: int
    device: str
    underlay: str
    public: Address | None = None
    own_public: Address | None = None
    direct: bool = False

    @property
    def overhead(self) -> int:
        """Bytes from the inner IP header to the outer one, that included."""
        return 50 if self.remote.version == 4 else 70


@dataclass(slots=True)
class Tally:
    """Probes of one kind. `refused` is why this host would not send one, `rtts` are in seconds."""

    sent: int = 0
    heard: dict[Place, set[int]] = field(default_factory=dict)
    rtts: list[float] = field(default_factory=list)
    refused: str = ""

    def count(self, place: Place = Place.UNDERLAY) -> int:
        """How many were answered and heard at this place or further in."""
        return len(set().union(*(numbers for where, numbers in self.heard.items() if where >= place)))


class Hop(NamedTuple):
    """The neighbour that packets for a peer go to first; `mac` is empty when it does not answer."""

    address: str
    mac: str
    state: str


@dataclass(slots=True)
class Seen:
    """All that was seen of one target.

    places      where answers could have been heard
    plainly     VXLAN probes that were answered without VXLAN
    spoiled     answers with a wrong checksum, by a sample of them
    altered     offsets in the inner packet at which what arrived at the peer differs from what was sent
    macs        the MAC addresses the peer's device answered from
    misled      the MAC addresses other than ours that answers were sent to
    vnis        other VNIs that answers carried
    closed      who said that nobody listens at the VXLAN port
    refusals    what routers or hosts on the way said about our packets
    too_big     who said that a packet was too big, and what fits
    passed      the largest inner packet that was answered, `lost` the smallest larger one that was not
    rp_drops    packets this host's rp_filter dropped meanwhile
    """

    target: Target
    tallies: dict[Kind, Tally] = field(default_factory=dict)
    places: frozenset[Place] = frozenset()
    plainly: int = 0
    spoiled: int = 0
    altered: tuple[int, ...] = ()
    macs: set[str] = field(default_factory=set)
    misled: set[str] = field(default_factory=set)
    vnis: set[int] = field(default_factory=set)
    closed: str = ""
    refusals: set[str] = field(default_factory=set)
    too_big: str = ""
    passed: int = 0
    lost: int = 0
    hop: Hop | None = None
    rp_drops: int = 0

    def tally(self, kind: Kind) -> Tally:
        return self.tallies.setdefault(kind, Tally())

    def answered(self, kind: Kind, place: Place = Place.UNDERLAY) -> int:
        return self.tallies[kind].count(place) if kind in self.tallies else 0

    def sent(self, kind: Kind) -> int:
        return self.tallies[kind].sent if kind in self.tallies else 0


class Answer(NamedTuple):
    """One packet that may answer a probe, read.

    `what` is "reply", "forwarded" (a probe that came back itself), "arp",
    "closed" (a port), "unreachable" or "too-big"; `number` the probe's, None
    when it does not say; `source` who sent it, by its inner address when
    encapsulated. `mtu` is what fits, of one too big.
    """

    what: str
    source: str
    number: int | None = None
    encapsulated: bool = False
    sound: bool = True
    vni: int = 0
    mac_from: str = ""
    mac_to: str = ""
    quote: bytes = b""
    code: int = 0
    mtu: int = 0
