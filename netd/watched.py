"""What netd reads from the store: the network config and every host's lease, in one mirror.

Owns: decoding of the keys below the prefix. Invariant: a lease whose key or
value is garbage is left out by the mirror (logged once, counted) and disturbs
nobody; a config that cannot be used is kept together with the reason, because
what to do about it depends on whether there was a good one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netd.allocate import Held, read_held
from netd.desired import Lease
from netd.table import Known
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import LeaseValue, Subnets
from podlane.errors import FieldError, Invalid
from podlane.store.interface import KeyValue
from podlane.store.mirror import Mirror

CONFIG = "config"
SUBNETS = "subnets/"
BACKENDS = ("vxlan", "host-gw")


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """The network config, or why it cannot be used; and its JSON."""

    config: NetworkConfig | None
    error: Invalid | None = None
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """A lease and the etcd lease its key hangs on (0: a reservation)."""

    lease: Lease
    etcd_lease: int
    revision: int = 0


Entry = ConfigEntry | LeaseEntry | None


class Decoder:
    """`prefix` is flannel's, for example `/coreos.com/network`."""

    def __init__(self, prefix: str) -> None:
        self.root = prefix.rstrip("/") + "/"

    def __call__(self, kv: KeyValue) -> Entry:
        """None for keys netd has no use for. Raises ValueError for a lease that is none."""
        name = kv.key.removeprefix(self.root)
        if name == CONFIG:
            return _config(kv)
        if not name.startswith(SUBNETS):
            return None
        key = name.removeprefix(SUBNETS)
        lease = Lease(key, Subnets.parse_key(key), LeaseValue.decode(kv.value), kv.create_revision)
        return LeaseEntry(lease, kv.lease, kv.mod_revision)


def _config(kv: KeyValue) -> ConfigEntry:
    where = f"network config {kv.key}"
    try:
        return ConfigEntry(usable_config(kv.value, where), None, kv.value)
    except Invalid as error:
        return ConfigEntry(None, error, kv.value)


def usable_config(raw: bytes, where: str) -> NetworkConfig:
    """A network config that netd can build. Raises Invalid."""
    config = parse_config(raw, where)
    if config.backend.type not in BACKENDS:
        known = " and ".join(BACKENDS)
        raise Invalid(where, [FieldError("Backend.Type", f'this netd builds {known}, got "{config.backend.type}"')])
    return config


def leases(entries: Mapping[str, Entry]) -> dict[str, Lease]:
    """Every host's lease, by the last part of its key."""
    return {entry.lease.key: entry.lease for entry in entries.values() if isinstance(entry, LeaseEntry)}


def network_config(entries: Mapping[str, Entry]) -> NetworkConfig | None:
    """None when there is none yet. Raises Invalid when there is one that cannot be used."""
    entry = entries.get(CONFIG)
    if not isinstance(entry, ConfigEntry):
        return None
    if entry.error is not None:
        # a new exception each time: raising the same one again and again would grow its traceback
        raise Invalid(entry.error.where, entry.error.errors)
    return entry.config


def lease_of(entries: Mapping[str, Entry], key: str) -> tuple[LeaseValue | None, int]:
    """Value and etcd lease of the lease with this key; (None, 0) when it is not there."""
    entry = entries.get(SUBNETS + key)
    return (entry.lease.value, entry.etcd_lease) if isinstance(entry, LeaseEntry) else (None, 0)


def known(mirror: Mirror[Entry]) -> Known:
    """Which subnets are taken, the unreadable keys among them."""
    if not mirror.synced:
        return Known()
    revision = mirror.revision  # before the content, so that what comes between is looked at again
    entries, _ = mirror.view()
    held: dict[str, Held] = {}
    for entry in entries.values():
        if isinstance(entry, LeaseEntry):
            lease = entry.lease
            held[lease.key] = Held(lease.key, lease.subnets, lease.value, entry.revision, lease.age, entry.etcd_lease)
    for key in mirror.undecodable:
        name = key.removeprefix(SUBNETS)
        if unreadable := read_held(name, b"", revision=0, created=0, lease=0):
            held[name] = unreadable
    return Known(held, revision)
