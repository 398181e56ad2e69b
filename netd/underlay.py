"""Which interface carries the overlay. Pure.

Owns: the choice, its error messages, and the check that the pod network does
not overlap what this host is already connected to. Invariants: what the
operator named is taken or refused, never replaced by something else; where
nothing was named, an interface is chosen on evidence (whom it reaches, what was
used before, where packets go) or because it is the only one, and otherwise all
are refused, with the candidates (candidates.py). Source: flannel's main.go and
pkg/ipmatch for the order of --iface, --iface-regex, --iface-can-reach and
--public-ip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address
from typing import TypeVar

from netd.candidates import candidates, is_container_link, is_nat, unusable
from netd.desired import Family, Underlay
from netd.model import Interface, InterfaceAddress
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, Network, Subnets
from podlane.errors import UsageError

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "digit": "0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
    "word": "0-9A-Za-z_",
}

_ROUTES_ASKED = 16
"""How many addresses' routes are looked up at most: more would tell nothing else."""

_I = TypeVar("_I", IPv4Interface, IPv6Interface)


class NoUnderlay(UsageError):
    """No interface can carry the overlay, or more than one could."""


@dataclass(frozen=True, slots=True)
class UnderlayWish:
    """What the operator asked for, by flannel's flags; without any of it the choice is automatic.

    `ifaces` are names or addresses. The public addresses are what peers are
    told and need not be this host's own (behind NAT they are not). `families`
    are those of the pod networks: an interface with one family suffices.
    """

    ifaces: tuple[str, ...] = ()
    iface_regexes: tuple[str, ...] = ()
    can_reach: Address | None = None
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    families: frozenset[Family] = frozenset({4})

    @property
    def public(self) -> tuple[Address, ...]:
        return tuple(a for a in (self.public_ip, self.public_ipv6) if a is not None)


@dataclass(frozen=True, slots=True)
class _Choice:
    """`addresses` are to be used if the interface has them, else those whose subnets hold most of `near`."""

    interface: Interface
    addresses: tuple[Address, ...] = ()
    near: Sequence[Address] = ()


class _Unfit(Exception):
    """Why one of the operator's wishes cannot be met."""


def choose_underlay(
    interfaces: Sequence[Interface],
    wish: UnderlayWish,
    *,
    reach: Sequence[Address],
    route_to: Callable[[Address], str],
    previous: str = "",
) -> Underlay:
    """The interface to use, with its addresses.

    `reach` are etcd's addresses, then the peers'. `route_to` names the interface
    the kernel would send by, "" for none. `previous` is the name of the one in
    use before a restart. Raises NoUnderlay.
    """
    if wish.ifaces or wish.iface_regexes or wish.can_reach is not None:
        choice = _as_told(interfaces, wish, route_to)
    else:
        choice = _public_holder(interfaces, wish) or _automatic(interfaces, wish, reach, route_to, previous)
    return _underlay(choice, wish)


def interface_regex(text: str) -> re.Pattern[str]:
    """A regular expression as Go writes it; matched anywhere in a name or an address. Raises UsageError."""

    def posix(match: re.Match[str]) -> str:
        if match[1] not in _POSIX:
            raise UsageError(f'expected a regular expression, got "{text}": unknown class [:{match[1]}:]')
        return _POSIX[match[1]]

    try:
        return re.compile(re.sub(r"\[:(\w+):\]", posix, text).replace(r"\z", r"\Z"))
    except re.error as error:
        raise UsageError(f'expected a regular expression, got "{text}": {error}') from None


def overlap(
    config: NetworkConfig,
    interfaces: Sequence[Interface],
    underlay: Underlay,
    own_devices: Collection[str],
    own: Subnets | None = None,
) -> str:
    """Why the pod networks cannot be these on this host; empty when they can.

    What is inside `own`, this host's subnets, is for its pods; while that is
    not known (None), bridges of containers may be inside any host's subnet.
    """
    for interface in interfaces:
        if interface.name in own_devices:
            continue
        for address in interface.addresses:
            for network in config.networks:
                if not _overlap(network, address.network):
                    continue
                if interface.name != underlay.name and _is_for_pods(interface, address, config, own):
                    continue
                return (
                    f"use network {network}: it overlaps {address.network}, the subnet of {interface.name} "
                    f"({address.ip}); take another network for the pods, or another subnet for {interface.name}"
                )
    return ""


def _is_for_pods(interface: Interface, address: InterfaceAddress, config: NetworkConfig, own: Subnets | None) -> bool:
    if own is None:
        length = config.subnet_len if address.version == 4 else config.ipv6_subnet_len
        return is_container_link(interface) and address.network.prefixlen >= length
    return any(_overlap(each, address.network) and address.network.prefixlen >= each.prefixlen for each in own)


# ---- what the operator named --------------------------------------------------------------------


def _as_told(interfaces: Sequence[Interface], wish: UnderlayWish, route_to: Callable[[Address], str]) -> _Choice:
    attempts: list[Callable[[], _Choice]] = [
        *(partial(_by_iface, interfaces, wish, each) for each in wish.ifaces),
        *(partial(_by_regex, interfaces, wish, each) for each in wish.iface_regexes),
    ]
    if wish.can_reach is not None:
        attempts.append(partial(_by_route, interfaces, wish, wish.can_reach, route_to))
    reasons: list[str] = []
    for attempt in attempts:
        try:
            return attempt()
        except _Unfit as reason:
            reasons.append(str(reason))
    raise NoUnderlay(f"choose interface: {'; '.join(reasons)}; {candidates(interfaces)}")


def _by_iface(interfaces: Sequence[Interface], wish: UnderlayWish, iface: str) -> _Choice:
    flag = f"--iface {iface}"
    try:
        address = ip_address(iface)
    except ValueError:  # then it is a name
        named = [each for each in interfaces if each.name == iface]
        wanted: tuple[Address, ...] = ()
        if not named:
            raise _Unfit(f"{flag}: no such interface") from None
    else:
        named = [each for each in interfaces if any(a.ip == address for a in each.addresses)]
        wanted = (address,)
        if not named:
            raise _Unfit(f"{flag}: no interface has this address")
    _require(named[0], wish, flag)
    return _Choice(named[0], wanted)


def _by_regex(interfaces: Sequence[Interface], wish: UnderlayWish, text: str) -> _Choice:
    """Addresses count before names, as in flannel; container links only when nothing else matches."""
    flag, regex = f"--iface-regex {text}", interface_regex(text)
    usable = [each for each in interfaces if not _problem(each, wish)]
    for container in (False, True):
        among = [each for each in usable if is_container_link(each) == container]
        for each in among:
            for address in each.addresses:
                if regex.search(str(address.ip)):
                    return _Choice(each, (address.ip,))
        for each in among:
            if regex.search(each.name):
                return _Choice(each)
    raise _Unfit(f"{flag}: matches no name and no address")


def _by_route(
    interfaces: Sequence[Interface], wish: UnderlayWish, target: Address, route_to: Callable[[Address], str]
) -> _Choice:
    flag = f"--iface-can-reach {target}"
    name = route_to(target)
    for each in interfaces:
        if name and each.name == name:
            _require(each, wish, f"{flag}: {name}")
            return _Choice(each, (target,), (target,))
    raise _Unfit(f"{flag}: there is no route to it")


def _public_holder(interfaces: Sequence[Interface], wish: UnderlayWish) -> _Choice | None:
    """The interface that has the public address; None when none has it (then it is a NAT's)."""
    held = {
        public: each
        for public in wish.public
        for each in interfaces
        if any(address.ip == public for address in each.addresses)
    }
    if len({each.name for each in held.values()}) > 1:
        raise NoUnderlay(
            f"choose interface: --public-ip {wish.public_ip} is on {held[wish.public[0]].name} and --public-ipv6 "
            f"{wish.public_ipv6} on {held[wish.public[1]].name}; name one of them with --iface"
        )
    for each in held.values():
        if problem := _problem(each, wish):
            raise NoUnderlay(
                f"choose interface: {each.name} has the public address: {problem}; {candidates(interfaces)}"
            )
        return _Choice(each)
    return None


def _require(interface: Interface, wish: UnderlayWish, flag: str) -> None:
    if problem := _problem(interface, wish):
        raise _Unfit(f"{flag}: {problem}")


def _problem(interface: Interface, wish: UnderlayWish) -> str:
    """Why the interface cannot carry the overlay as wished; empty when it can."""
    if problem := unusable(interface):
        return problem
    for public in wish.public:
        if all(address.version != public.version for address in interface.addresses):
            flag = "--public-ip" if public.version == 4 else "--public-ipv6"
            return f"it has no IPv{public.version} address to go with {flag} {public}"
    return ""


# ---- the automatic choice -----------------------------------------------------------------------


def _automatic(
    interfaces: Sequence[Interface],
    wish: UnderlayWish,
    reach: Sequence[Address],
    route_to: Callable[[Address], str],
    previous: str,
) -> _Choice:
    usable = [each for each in interfaces if not _problem(each, wish) and not is_container_link(each)]
    left = [each for each in usable if not is_nat(each)] or usable
    if not left:
        raise NoUnderlay(f"choose interface: none fits, name one with --iface; {candidates(interfaces)}")
    near = tuple(dict.fromkeys(reach))
    criteria: tuple[Callable[[Sequence[Interface]], Sequence[Interface]], ...] = (
        lambda among: _holding_most(among, near, interfaces),
        lambda among: [each for each in among if each.name == previous],
        lambda among: _routed(among, near, route_to),
        lambda among: [each for each in among if wish.families <= {a.version for a in each.addresses}],
        lambda among: _default_route(among, lambda each: each.default_metric),
        lambda among: _default_route(among, lambda each: each.default_metric6),
    )
    for criterion in criteria:
        if len(left) == 1:
            break
        left = list(criterion(left)) or left  # one that favours none has nothing to say
    if len(left) > 1:
        raise NoUnderlay(
            f"choose interface: nothing tells {' and '.join(each.name for each in left)} apart, "
            f"name one with --iface; {candidates(interfaces)}"
        )
    return _Choice(left[0], near=near)


def _holding_most(
    among: Sequence[Interface], near: Sequence[Address], interfaces: Sequence[Interface]
) -> Sequence[Interface]:
    """Those whose own subnets hold most of the addresses, or on a tie the first of them."""
    owners = {address.ip: each for each in interfaces for address in each.addresses}
    held: dict[str, list[int]] = {each.name: [] for each in among}
    for position, target in enumerate(near):
        if target in owners:  # this host's own, so only its interface counts
            supported = [owners[target]]
        else:
            lengths = {each.name: _longest_match(each, target) for each in among}
            best = max(lengths.values())
            supported = [each for each in among if lengths[each.name] == best] if best >= 0 else []
        for each in supported:
            if each.name in held:
                held[each.name].append(position)
    score = {name: (len(positions), -min(positions, default=0)) for name, positions in held.items()}
    most = max(score.values())
    return [each for each in among if score[each.name] == most]


def _longest_match(interface: Interface, target: Address) -> int:
    """Prefix length of its longest subnet with the target, -1 for none."""
    return max((a.network.prefixlen for a in interface.addresses if _holds(a, target)), default=-1)


def _routed(
    among: Sequence[Interface], near: Sequence[Address], route_to: Callable[[Address], str]
) -> Sequence[Interface]:
    for target in near[:_ROUTES_ASKED]:
        name = route_to(target)
        if found := [each for each in among if each.name == name]:
            return found
    return []


def _default_route(among: Sequence[Interface], metric_of: Callable[[Interface], int | None]) -> Sequence[Interface]:
    metrics = {each.name: metric for each in among if (metric := metric_of(each)) is not None}
    return [each for each in among if metrics and metrics.get(each.name) == min(metrics.values())]


# ---- addresses ----------------------------------------------------------------------------------


def _underlay(choice: _Choice, wish: UnderlayWish) -> Underlay:
    v4, v6 = _address(choice, wish, IPv4Interface), _address(choice, wish, IPv6Interface)
    named = {address.version for address in choice.interface.addresses if address.ip in choice.addresses}
    families = wish.families if named <= wish.families else named  # --iface fd00::5, though the pods have only IPv4
    needed = families | {public.version for public in wish.public}
    if 4 not in needed and v6 is not None:
        v4 = None
    if 6 not in needed and v4 is not None:
        v6 = None
    return Underlay(
        name=choice.interface.name,
        mtu=choice.interface.mtu,
        v4=v4,
        v6=v6,
        public_ip=(wish.public_ip or v4.ip) if v4 is not None else None,
        public_ipv6=(wish.public_ipv6 or v6.ip) if v6 is not None else None,
    )


def _address(choice: _Choice, wish: UnderlayWish, kind: type[_I]) -> _I | None:
    mine = [address for address in choice.interface.addresses if isinstance(address, kind)]
    for wanted in (*choice.addresses, *wish.public):
        for address in mine:
            if address.ip == wanted:
                return address
    return max(mine, key=lambda address: sum(_holds(address, each) for each in choice.near), default=None)


def _holds(address: InterfaceAddress, target: Address) -> bool:
    return address.version == target.version and target in address.network


def _overlap(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)
