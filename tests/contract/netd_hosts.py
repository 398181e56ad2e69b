"""Hosts that lease subnets, without anything else of netd, on a store in memory or on etcd."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from netd.identity import NodeIdentity
from netd.lease import LeaseHolder, Tenancy
from netd.records import claim_key, recent_key
from netd.renewal import Renewal
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import Address, LeaseValue, Subnets
from podlane.store.interface import Compare, Delete, KeyValue, Put, Store
from podlane.store.lease import KeepAlive

PREFIX = "/coreos.com/network"
CONFIG = parse_config('{"Network":"10.5.0.0/16"}')
WAIT = 120.0

NewHost = Callable[..., "Host"]
"""Makes a Host, and ends it with the test."""


@dataclass
class Host:
    """One host: `node` is its id, drawn once; `boot` changes when it is rebooted. Its address may change."""

    store: Store
    number: int
    address: Address | None = None
    node: str = ""
    boot: str = "first boot"
    seed: int | None = None
    holder: LeaseHolder = field(init=False)
    renewals: list[Renewal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.address = self.address or ip_address(f"192.168.64.{self.number}")
        self.node = self.node or f"node-{self.number}"
        self.start()

    def start(self, previous: Subnets | None = None, *, quarantine: int = 3600) -> LeaseHolder:
        """A new netd; `previous` is what its subnet file says."""
        seed = self.number if self.seed is None else self.seed
        identity = NodeIdentity(self.node, self.boot, f"host{self.number}")
        self.holder = LeaseHolder(
            self.store, PREFIX, identity, self._renewal, random.Random(seed), previous, quarantine=quarantine
        )
        return self.holder

    def _renewal(self, ttl: int, lease_id: int) -> Renewal:
        self.renewals.append(KeepAlive(self.store, ttl, lease_id=lease_id))
        return self.renewals[-1]

    @property
    def value(self) -> LeaseValue:
        mac = f"02:00:00:00:{self.number >> 8:02x}:{self.number & 255:02x}"
        address = self.address
        if address is not None and address.version == 4:
            return LeaseValue.vxlan(address, 1, mac)
        return LeaseValue.vxlan(None, 1, public_ipv6=address, mac6=mac)

    def ensure(self, config: NetworkConfig = CONFIG) -> Tenancy:
        return self.holder.ensure(config, self.value)

    def killed(self) -> None:
        """As by SIGKILL: nothing is renewed any more, nothing is given up."""
        for each in self.renewals:
            each.stop(revoke=False)
        self.renewals.clear()

    def claim_expires(self) -> None:
        end(self.store, self.claim)

    def lease_expires(self) -> None:
        end(self.store, self.lease)

    @property
    def lease(self) -> KeyValue | None:
        assert self.holder.tenancy is not None
        return lease_of(self.store, self.holder.tenancy.subnets)

    @property
    def claim(self) -> KeyValue | None:
        assert self.address is not None
        return self.store.get(claim_key(PREFIX, self.address))

    @property
    def recent(self) -> KeyValue | None:
        assert self.holder.tenancy is not None
        return self.store.get(recent_key(PREFIX, self.holder.tenancy.subnets))


def subnets(text: str) -> Subnets:
    """`10.5.1.0/24`, `fd00::/64`, or both with a comma."""
    found = [ip_network(part) for part in text.split(",")]
    return Subnets(*(next((each for each in found if each.version == v), None) for v in (4, 6)))  # type: ignore[arg-type]


def lease_of(store: Store, which: Subnets) -> KeyValue | None:
    return store.get(f"{PREFIX}/subnets/{which.key}")


def end(store: Store, kv: KeyValue | None) -> None:
    """Let the etcd lease of a key run out; both stores do the same when it is revoked."""
    assert kv is not None
    assert kv.lease
    store.revoke(kv.lease)


def leases(store: Store) -> dict[str, LeaseValue]:
    found = store.list(f"{PREFIX}/subnets/").items
    return {kv.key.rpartition("/")[2]: LeaseValue.decode(kv.value) for kv in found}


def revision(store: Store) -> int:
    """Grows with every write, and with nothing else."""
    return store.list(PREFIX).revision


def put(store: Store, key: str, value: str | bytes, lease: int = 0) -> None:
    store.txn([], [Put(key, value.encode() if isinstance(value, str) else value, lease)])


def delete(store: Store, *keys: str) -> None:
    store.txn([], [Delete(key) for key in keys])


def wipe(store: Store) -> None:
    """Every key and every lease is gone, as from an etcd that lost its disk."""
    found = store.list("/").items
    for lease in {kv.lease for kv in found} - {0}:
        store.revoke(lease)
    store.txn([Compare.absent("/none")], [Delete("/", prefix=True)])


def at_once(actions: Iterable[Callable[[], object]]) -> list[BaseException]:
    """Run each in a thread of its own, all together; returns what they raised."""
    actions = list(actions)
    failures: list[BaseException] = []
    together = threading.Barrier(len(actions))

    def run(action: Callable[[], object]) -> None:
        try:
            together.wait(WAIT)
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return failures
