"""What this host is in the network: config, underlay, subnets, MAC addresses; and where each is found.

Owns: the order in which sources are believed (the store, then what is in use,
then memory, then a file) and the rule that what runs is not pulled from under
itself: an unusable or missing config leaves the one in use, a config under
which this host's subnets would not be allowed waits for a restart, an underlay
that has lost an address is waited for rather than replaced. Used from the
lease and the kernel thread; each keeps what it gets.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Literal, TypeVar

from netd.cache import Remembered
from netd.candidates import candidates
from netd.desired import Family, Underlay, carriers
from netd.kernel import Kernel
from netd.model import Desired, Interface
from netd.state import State
from netd.underlay import UnderlayWish, choose_underlay, overlap
from netd.watched import CONFIG, ConfigEntry, Entry, leases, network_config, usable_config
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, LeaseValue, Subnets, config_key
from podlane.errors import Invalid, PodlaneError
from podlane.runtime.log import get_logger
from podlane.runtime.runner import NotReady
from podlane.store.interface import Compare, Put, Store

_I = TypeVar("_I", IPv4Interface, IPv6Interface)

_log = get_logger("netd.place")


@dataclass(frozen=True, slots=True)
class Place:
    """`macs` are the VXLAN devices' by name. `confirmed`: the store says so; otherwise it is remembered.

    `problem` is what is wrong with the underlay although part of it can be used.
    """

    config: NetworkConfig
    underlay: Underlay
    own: Subnets
    macs: Mapping[str, str]
    confirmed: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator wants of it. `reach` gives etcd's addresses, which the underlay should lead to."""

    prefix: str
    underlay: UnderlayWish
    reach: Callable[[], Sequence[Address]]
    net_config_path: Path | None = None


class Surroundings:
    """Finds each part of a Place."""

    def __init__(
        self,
        wishes: Wishes,
        *,
        kernel: Kernel,
        store: Store,
        state: State,
        remembered: Remembered | None,
        rng: random.Random,
        previous: Subnets | None = None,
    ) -> None:
        """`previous`: the subnets this host had before, in which its pods may be."""
        self._wishes = wishes
        self._kernel = kernel
        self._store = store
        self._state = state
        self._remembered = remembered
        self._rng = rng
        self._previous = previous
        self._lock = threading.Lock()
        self._said = ""
        self.made = frozenset(remembered.devices if remembered is not None else ())
        """Devices netd has made, also under earlier configs."""
        self.raw_config = remembered.config if remembered is not None else b""
        self.candidates = ""
        """The interfaces that could have been chosen, for people."""

    # ---- the config -----------------------------------------------------------------------------

    def config(self, entries: Mapping[str, Entry], before: Place | None) -> NetworkConfig:
        """The network config to live under. Raises NotReady (there is none yet), Invalid (it cannot be used)."""
        key = config_key(self._wishes.prefix)
        try:
            stored = network_config(entries)
        except Invalid as error:
            if before is None:
                raise
            self._say(f"{error}; keeping the one in use")
            return before.config
        if stored is None:
            return self._without_stored(key, before)
        if before is not None and not stored.allows(before.own):
            self._say(f"network config {key} no longer allows this host's {before.own}: restart netd to move")
            return before.config
        self._say("")
        entry = entries[CONFIG]
        assert isinstance(entry, ConfigEntry)
        self.raw_config = entry.raw
        return stored

    def _without_stored(self, key: str, before: Place | None) -> NetworkConfig:
        path = self._wishes.net_config_path
        if path is not None:
            self._publish(key, path)
        if before is not None:
            self._say(f"network config {key} is gone from the store, keeping the one in use")
            return before.config
        if self._remembered is not None:
            self._say(f"there is no network config {key} in the store, going on with the one remembered")
            return usable_config(self._remembered.config, "remembered network config")
        self._say(f"waiting for the network config {key}")
        raise NotReady(f"read network config {key}: there is none yet")

    def _publish(self, key: str, path: Path) -> None:
        """Put the file's config into the store, unless somebody was faster. Raises PodlaneError."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise PodlaneError(f"read network config {path}: {error.strerror or error}") from error
        usable_config(raw, f"network config {path}")
        if self._store.txn([Compare.absent(key)], [Put(key, raw)]).succeeded:
            _log.info("network config published", key=key, path=str(path))

    def _say(self, text: str) -> None:
        """Once for each time it becomes so."""
        if text and text != self._said:
            _log.warning(text)
        self._said = text

    # ---- the underlay ---------------------------------------------------------------------------

    def underlay(self, config: NetworkConfig, before: Place | None, peers: Iterable[Address]) -> Underlay:
        """The interface to use, as it is now. Raises NoUnderlay, PodlaneError."""
        if before is not None:
            return self.refreshed(before.underlay)[0]
        interfaces = self._kernel.interfaces()
        families: frozenset[Family] = frozenset(4 if network.version == 4 else 6 for network in config.networks)
        chosen = choose_underlay(
            interfaces,
            replace(self._wishes.underlay, families=families),
            reach=(*self._wishes.reach(), *peers),
            route_to=self._kernel.route_to,
            previous=self._remembered.interface if self._remembered is not None else "",
        )
        own = {c.name for c in carriers(config, chosen)} | self.made
        if problem := overlap(config, interfaces, chosen, own, self._previous):
            raise PodlaneError(problem)
        self.candidates = candidates(interfaces)
        return chosen

    def refreshed(self, underlay: Underlay) -> tuple[Underlay, str]:
        """The same interface with the MTU and addresses it has now, and what is wrong with it.

        An address that is gone stands as long as there is one of the other family, whose pods are to go on.
        Raises PodlaneError when the interface cannot be used at all now.
        """
        now = self._kernel.interface(underlay.name)
        if now is None:
            raise PodlaneError(f"use underlay {underlay.name}: the interface is gone")
        wish = self._wishes.underlay
        if not now.up:
            raise PodlaneError(f"use underlay {underlay.name}: it is down")
        v4, v6 = _present(underlay.v4, now, IPv4Interface), _present(underlay.v6, now, IPv6Interface)
        lost = [was for was, has in ((underlay.v4, v4), (underlay.v6, v6)) if was is not None and has is None]
        problem = "".join(f"use underlay {now.name}: its IPv{was.version} address {was.ip} is gone" for was in lost[:1])
        if v4 is None and v6 is None:
            raise PodlaneError(problem)
        v4, v6 = v4 or underlay.v4, v6 or underlay.v6
        public_ip = wish.public_ip or (v4.ip if v4 is not None else None)
        public_ipv6 = wish.public_ipv6 or (v6.ip if v6 is not None else None)
        return replace(underlay, mtu=now.mtu, v4=v4, v6=v6, public_ip=public_ip, public_ipv6=public_ipv6), problem

    # ---- MAC addresses and devices --------------------------------------------------------------

    def macs(self, config: NetworkConfig, underlay: Underlay, entries: Mapping[str, Entry]) -> dict[str, str]:
        """Each device's MAC address: the one it has (peers know it), else the last one used, else a new one."""
        found: dict[str, str] = {}
        for carrier in carriers(config, underlay):
            is_v6 = 4 not in carrier.families
            link = self._kernel.link(carrier.name)
            mac = link.mac if link is not None and link.kind == "vxlan" else self._state.mac(v6=is_v6)
            mac = mac or self._published_mac(underlay, entries, 6 if is_v6 else 4) or self._new_mac()
            self._state.set_mac(mac, v6=is_v6)
            found[carrier.name] = mac
        return found

    @staticmethod
    def _published_mac(underlay: Underlay, entries: Mapping[str, Entry], family: Literal[4, 6]) -> str:
        for lease in leases(entries).values():
            if any(underlay.is_public(address) for address in lease.value.addresses) and (
                mac := _mac_of(lease.value, family)
            ):
                return mac
        return ""

    def _new_mac(self) -> str:
        octets = [0x02, *(self._rng.randrange(256) for _ in range(5))]  # locally administered, unicast
        return ":".join(f"{octet:02x}" for octet in octets)

    def will_make(self, want: Desired) -> None:
        """Say so before: whatever happens then, they are known as ours."""
        self.made |= frozenset(want.devices)

    def has_made(self, want: Desired) -> None:
        """All that was obsolete is gone."""
        self.made = frozenset(want.devices)

    # ---- memory ---------------------------------------------------------------------------------

    def place_from(self, remembered: Remembered) -> Place:
        """What this host was when it last knew. Raises PodlaneError when that cannot be again."""
        config = usable_config(remembered.config, "remembered network config")
        peers = [address for lease in remembered.leases.values() for address in lease.value.addresses]
        underlay = self.underlay(config, None, peers)
        return Place(config, underlay, remembered.own, self.macs(config, underlay, {}), confirmed=False)


def _present(address: _I | None, now: Interface, kind: type[_I]) -> _I | None:
    """The address, if the interface still has it, else its present one.

    None stays None: an address family that comes later is for the next start.
    """
    if address is None or address in now.addresses:
        return address
    return next((other for other in now.addresses if isinstance(other, kind)), None)


def _mac_of(value: LeaseValue, family: Literal[4, 6]) -> str:
    try:
        return value.vtep_mac(family)
    except ValueError:
        return ""
