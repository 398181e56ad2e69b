"""What becomes of a packet, by the model, and whether the real one agrees.

Owns: the question a trace asks, all its possible answers with their chances, and
the comparison with what was seen (live.py sees it). Pure. The model is walk.py
over what the kernel has at this moment; two verdicts are the same outcome when
the packet goes to the same place and shows the same source there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address

from podlane.errors import PodlaneError
from proxyd.tables import PROTOCOL_NUMBERS, Frontend, Target
from proxyd.walk import Kernel, Packet, Verdict, choices, every_outcome

SEEN_NOTHING = "not seen"
LOST = "lost"

MEANINGS: Mapping[str, str] = {
    "translate": "goes to",
    "pass": "passes unchanged: it is for no service",
    "reset": "is refused by a TCP reset",
    "unreachable": "is refused by ICMP port unreachable",
    "drop": "is dropped",
    LOST: "is accepted by every rule, but goes nowhere: the host has no way there",
    SEEN_NOTHING: "is lost before any nftables rule saw it",
}


class BadInput(PodlaneError):
    """What was asked makes no sense; names the argument and the remedy."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """`target` where `action` is "translate". `masquerade`: the endpoint sees this host and not the source."""

    action: str
    target: Target | None = None
    masquerade: bool = False

    def __str__(self) -> str:
        if self.target is None:
            return MEANINGS[self.action]
        whom = "sees this host's address (masqueraded)" if self.masquerade else "sees the source's own address"
        return f"goes to {self.target}, which {whom}"


@dataclass(frozen=True, slots=True)
class Possible:
    """An outcome, how likely it is, and by which steps it comes about."""

    outcome: Outcome
    chance: Fraction
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """All that may become of the packet. `common`: the steps all have in common, from the first on."""

    packet: Packet
    common: tuple[str, ...]
    possible: tuple[Possible, ...]

    @property
    def outcomes(self) -> frozenset[Outcome]:
        return frozenset(each.outcome for each in self.possible)


def forecast(packet: Packet, kernel: Kernel) -> Forecast:
    """Ask the model. Raises PodlaneError where the tables contradict themselves."""
    try:
        verdicts = list(every_outcome(packet, kernel))
        picks = max(1, choices(packet, kernel))
    except ValueError as error:
        raise PodlaneError(str(error)) from error
    counts: dict[Outcome, int] = {}
    first: dict[Outcome, Verdict] = {}
    for verdict in verdicts:
        outcome = Outcome(verdict.action, verdict.target, verdict.masquerade)
        counts[outcome] = counts.get(outcome, 0) + 1
        first.setdefault(outcome, verdict)
    common = _common([verdict.steps for verdict in first.values()])
    possible = [
        Possible(outcome, Fraction(counts[outcome], picks), verdict.steps[len(common) :])
        for outcome, verdict in first.items()
    ]
    return Forecast(packet, common, tuple(sorted(possible, key=lambda each: (-each.chance, str(each.outcome)))))


def _common(steps: Sequence[Sequence[str]]) -> tuple[str, ...]:
    found = []
    for together in zip(*steps, strict=False):
        if len(set(together)) > 1:
            break
        found.append(together[0])
    return tuple(found)


# --- the question --------------------------------------------------------------------


_NAMED = re.compile(r"(?:(?P<namespace>[a-z0-9-]+)/)?(?P<name>[a-z]([a-z0-9-]*[a-z0-9])?)(?::(?P<port>[A-Za-z0-9-]+))?")

Lookup = Callable[[str, str, int], Iterable[tuple[str, Frontend]]]
"""From a namespace, a service's name and an IP version (4 or 6) to (port name, frontend) of its cluster IPs."""


def parse(source: str, destination: str, protocol: str, known: Iterable[Frontend], lookup: Lookup) -> Packet:
    """Make the packet asked for. `known`: the frontends there are, from which a port left out may follow.

    `destination` is ADDRESS[:PORT], [IPV6]:PORT or [NAMESPACE/]SERVICE[:PORT]. `protocol` may be "" where
    only one fits. Raises BadInput.
    """
    check(source, destination)
    sender = ip_address(source)
    protocol = protocol.upper()
    assert not protocol or protocol in PROTOCOL_NUMBERS
    address, port = _split(destination)
    if address is None:
        found = _named(destination, sender.version, protocol, lookup)
    else:
        found = Frontend(address, protocol, port or 0)
        if not port:
            found = _only(destination, address, protocol, known)
        elif not protocol:
            fitting = {each.protocol for each in known if each[::2] == (address, port)}
            found = Frontend(address, fitting.pop() if len(fitting) == 1 else "TCP", port)
    if ip_address(found.address).version != sender.version:
        raise BadInput(f"DST: {found.address} and SRC {sender} are of different families; give both as one")
    return Packet(str(sender), found.address, found.port, found.protocol)


def check(source: str, destination: str) -> None:
    """Find what is wrong whatever there is. Raises BadInput."""
    try:
        ip_address(source)
    except ValueError:
        raise BadInput(f'SRC: expected an IP address, such as a pod\'s, got "{source}"') from None
    if _split(destination)[0] is None and _NAMED.fullmatch(destination) is None:
        raise BadInput(f'DST: expected 10.96.0.10:80 or namespace/service:port, got "{destination}"')


def _split(destination: str) -> tuple[str | None, int]:
    """The address, None if it is none, and the port, 0 if there is none."""
    text = destination.strip()
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadInput(f'DST: expected [ADDRESS]:PORT, got "{destination}"')
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = str(ip_address(host))
    except ValueError:
        if host[:1].isdigit() or text.startswith("[") or text.count(":") > 1:
            raise BadInput(f'DST: expected an address as in 10.96.0.10:80, got "{destination}"') from None
        return None, 0
    if not port:
        return address, 0
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f'DST: expected a port from 1 to 65535, got "{port}"')
    return address, int(port)


def _only(destination: str, address: str, protocol: str, known: Iterable[Frontend]) -> Frontend:
    """The one frontend at the address."""
    served = sorted(each for each in known if each.address == address and protocol in {"", each.protocol})
    if len(served) == 1:
        return served[0]
    if not served:
        raise BadInput(f"DST: no port given, and no service has one at {address}; name it, as in {address}:80")
    raise BadInput(f"DST: {destination} has several ports, name one of: {', '.join(map(str, served))}")


def _named(destination: str, version: int, protocol: str, lookup: Lookup) -> Frontend:
    match = _NAMED.fullmatch(destination)
    assert match is not None  # checked
    namespace, name, port = match["namespace"] or "default", match["name"], match["port"]
    every = list(lookup(namespace, name, version))
    if not every:
        raise BadInput(f"DST: no service {namespace}/{name} with an IPv{version} address; see: proxyd services")
    served = [
        frontend
        for port_name, frontend in every
        if port in {None, port_name, str(frontend.port)} and protocol in {"", frontend.protocol}
    ]
    if len(served) == 1:
        return served[0]
    there = ", ".join(f"{each.port}/{each.protocol.lower()}" for _, each in every)
    if not served:
        raise BadInput(f"DST: service {namespace}/{name} has no such port; it has: {there}")
    raise BadInput(f"DST: service {namespace}/{name} has several ports, name one of: {there}")
