"""A host as one sees it without asking its netd: store, memory, kernel.

Owns: putting these together for `netd status`, `plan` and `doctor`, which must
work just when netd does not run. Nothing is changed, neither in the store nor
in the kernel nor in the state directory. What netd itself says (report.py) is
read where it answers.
"""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from netd.cache import NetworkCache, Remembered
from netd.desired import Lease, Peers, Underlay
from netd.kernel import Kernel
from netd.model import Actual, Desired
from netd.place import Surroundings, Wishes
from netd.plan import Plan, plan
from netd.records import Claim, claims_prefix
from netd.settings import HostSettings
from netd.state import State
from netd.underlay import UnderlayWish
from netd.watched import (
    CONFIG,
    SUBNETS,
    ConfigEntry,
    Decoder,
    Entry,
    LeaseEntry,
    leases,
    network_config,
    usable_config,
)
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, Subnets, config_key
from podlane.errors import Invalid, NotFound, PermissionDenied, PodlaneError, StoreUnavailable
from podlane.store.interface import Store

_DAEMON_TIMEOUT = 2.0


class NotOnThisHost(PodlaneError):
    """There is nothing to see: netd never held a lease here."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The network as the store has it. `undecodable` says why, by key."""

    entries: Mapping[str, Entry]
    undecodable: Mapping[str, str]

    @property
    def leases(self) -> dict[str, Lease]:
        return leases(self.entries)

    def etcd_lease(self, key: str) -> int:
        """0 for a reservation."""
        entry = self.entries.get(f"{SUBNETS}{key}")
        return entry.etcd_lease if isinstance(entry, LeaseEntry) else 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What this host is, has, and should have. `daemon` is netd's own report, None when it does not answer."""

    stored: Stored
    config: NetworkConfig
    underlay: Underlay
    own: Subnets
    desired: Desired
    actual: Actual
    daemon: Mapping[str, Any] | None
    store_error: str = ""
    """Why the store could not be read; then `stored` is what is remembered of it."""
    remark: str = ""
    """Why the config is not the store's."""

    def plan(self) -> Plan:
        """What netd would change now. Raises Refused."""
        todo = plan(self.desired, self.actual)
        return todo.withdrawing_nobody(self.desired) if self.store_error else todo

    @property
    def hosts(self) -> list[Lease]:
        """The leases of hosts that are there, this one among them; no reservations that nobody has taken yet."""
        return [lease for lease in self.stored.leases.values() if lease.value.backend_type]


def read_store(store: Store, prefix: str) -> Stored:
    """Everything below the prefix. Raises StoreUnavailable."""
    decode = Decoder(prefix)
    entries: dict[str, Entry] = {}
    undecodable: dict[str, str] = {}
    for page in store.pages(decode.root):
        for kv in page.items:
            name = kv.key.removeprefix(decode.root)
            try:
                entries[name] = decode(kv)
            except ValueError as error:
                undecodable[name] = str(error)
    return Stored(entries, undecodable)


def read_hosts(store: Store, prefix: str) -> dict[Address, str]:
    """The names of the hosts whose netd runs, by public address."""
    found: dict[Address, str] = {}
    start = claims_prefix(prefix)
    with suppress(PermissionDenied):  # who may only read flannel's keys sees the leases all the same
        for kv in store.list(start).items:
            with suppress(ValueError):  # nobody's that we know of
                found[ip_address(kv.key.removeprefix(start))] = Claim.decode(kv.value).host
    return found


def read_config(store: Store, prefix: str) -> NetworkConfig:
    """Raises NotFound, Invalid, StoreUnavailable."""
    key = config_key(prefix)
    kv = store.get(key)
    if kv is None:
        raise NotFound(f"read network config {key}: there is none")
    return usable_config(kv.value, f"network config {key}")


def ask_daemon(settings: HostSettings) -> dict[str, Any] | None:
    """The report of the netd that runs here; None when none answers."""
    if not settings.healthz_port:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.healthz_ip, settings.healthz_ip)
    connection = http.client.HTTPConnection(host, settings.healthz_port, timeout=_DAEMON_TIMEOUT)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        found = json.loads(response.read()) if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return found if isinstance(found, dict) else None


def wishes(settings: HostSettings, reach: Callable[[], Sequence[Address]]) -> Wishes:
    """What `netd run` was told about the underlay."""
    return Wishes(
        settings.etcd_prefix,
        UnderlayWish(
            ifaces=settings.iface,
            iface_regexes=settings.iface_regex,
            can_reach=ip_address(settings.iface_can_reach) if settings.iface_can_reach else None,
            public_ip=IPv4Address(settings.public_ip) if settings.public_ip else None,
            public_ipv6=IPv6Address(settings.public_ipv6) if settings.public_ipv6 else None,
        ),
        reach,
    )


def look(
    store: Store, kernel: Kernel, settings: HostSettings, folder: Path, reach: Callable[[], Sequence[Address]]
) -> Seen:
    """Look at everything once, with what is remembered in the store's place if that does not answer.

    Raises NotOnThisHost, Invalid, StoreUnavailable (and nothing is remembered), PodlaneError.
    """
    remembered, store_error = NetworkCache(folder).load(), ""
    try:
        stored = read_store(store, settings.etcd_prefix)
    except StoreUnavailable as error:
        if remembered is None:
            raise
        stored, store_error = _from_memory(remembered), str(error)
    if remembered is not None:
        stored = _with_kept(stored, remembered)
        _check_up(kernel, remembered.interface)
    config, remark = _config_in_force(stored, remembered, config_key(settings.etcd_prefix))
    surroundings = Surroundings(
        wishes(settings, reach),
        kernel=kernel,
        store=store,
        state=State(folder, read_only=True),
        remembered=remembered,
        rng=random.Random(0),
        previous=remembered.own if remembered is not None else None,
    )
    known = stored.leases
    peers = [address for lease in known.values() for address in lease.value.addresses]
    underlay = surroundings.underlay(config, None, peers)
    own = _own(known, underlay, remembered.own if remembered is not None else None)
    daemon = ask_daemon(settings)
    direct = (daemon or {}).get("peers", {}).get("direct", [])
    macs = surroundings.macs(config, underlay, stored.entries)
    desired = Peers().desired(
        config,
        underlay,
        own,
        macs,
        known.values(),
        direct=frozenset(map(ip_address, direct)),
        blackhole=settings.ip_blackhole_route,
        obsolete=surroundings.made,
    )
    actual = kernel.observe(desired.watched, desired.networks, desired.sysctls.keys())
    return Seen(stored, config, underlay, own, desired, actual, daemon, store_error, remark)


def _from_memory(remembered: Remembered) -> Stored:
    config = ConfigEntry(usable_config(remembered.config, "remembered network config"))
    entries = {f"{SUBNETS}{key}": LeaseEntry(lease, 0) for key, lease in remembered.leases.items()}
    return Stored({CONFIG: config, **entries}, {})


def _config_in_force(stored: Stored, remembered: Remembered | None, key: str) -> tuple[NetworkConfig, str]:
    """What netd goes by, and why that is not what the store says. Raises Invalid, PodlaneError."""
    try:
        config = network_config(stored.entries)
        problem = f"network config {key}: there is none"
    except Invalid as error:
        if remembered is None:
            raise
        config, problem = None, str(error)
    if config is not None and (remembered is None or config.allows(remembered.own)):
        return config, ""
    if remembered is None:
        raise PodlaneError(f"read {problem}")
    if config is not None:
        problem = f"network config {key}: does not allow this host's {remembered.own}; restart netd to move"
    return usable_config(remembered.config, "remembered network config"), f"{problem} (the last good one is in use)"


def _with_kept(stored: Stored, remembered: Remembered) -> Stored:
    """With the peers that netd keeps although a store that was emptied does not have them."""
    kept = {f"{SUBNETS}{key}": LeaseEntry(remembered.leases[key], 0) for key in remembered.kept}
    return Stored({**kept, **stored.entries}, stored.undecodable)


def _check_up(kernel: Kernel, interface: str) -> None:
    """Without this, another interface would be taken for the underlay. Raises PodlaneError."""
    link = kernel.link(interface)
    if link is not None and not link.up:
        raise PodlaneError(f"use underlay {interface}: it is down")


def _own(known: Mapping[str, Lease], underlay: Underlay, remembered: Subnets | None) -> Subnets:
    mine = [lease for lease in known.values() if any(underlay.is_public(a) for a in lease.value.addresses)]
    for lease in mine:
        if lease.subnets == remembered:
            return remembered
    if mine:
        return min(mine, key=lambda lease: lease.age).subnets
    if remembered is not None:
        return remembered
    addresses = ", ".join(str(a) for a in (underlay.public_ip, underlay.public_ipv6) if a is not None)
    raise NotOnThisHost(f"find this host's lease: none names {addresses} ({underlay.name}); start it with: netd run")
