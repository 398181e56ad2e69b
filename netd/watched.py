"""What netd reads from the store: the network config and every host's lease, in one mirror.

Owns: decoding of the keys below the prefix. Invariant: a lease whose key or
value is garbage is left out by the mirror (logged once, counted) and disturbs
nobody; a config that cannot be used is kept together with the reason, because
what to do about it depends on whether there was a good one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netd.desired import Lease
from podlane.api.network import LeaseValue, NetworkConfig, parse_config, parse_subnet_key
from podlane.errors import FieldError, Invalid
from podlane.store.interface import KeyValue

CONFIG = "config"
SUBNETS = "subnets/"


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """The network config, or why it cannot be used."""

    config: NetworkConfig | None
    error: Invalid | None = None


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """A lease and the etcd lease its key hangs on (0: a reservation)."""

    lease: Lease
    etcd_lease: int


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
        subnet, _ = parse_subnet_key(key)
        return LeaseEntry(Lease(key, subnet, LeaseValue.decode(kv.value), kv.create_revision), kv.lease)


def _config(kv: KeyValue) -> ConfigEntry:
    where = f"network config {kv.key}"
    try:
        config = parse_config(kv.value, where)
    except Invalid as error:
        return ConfigEntry(None, error)
    errors: list[FieldError] = []
    if not config.enable_ipv4:
        errors.append(FieldError("EnableIPv4", "this netd builds IPv4 overlays, got false"))
    if config.enable_ipv6:
        errors.append(FieldError("EnableIPv6", "this netd builds IPv4 overlays only, got true"))
    if config.backend.type != "vxlan":
        errors.append(FieldError("Backend.Type", f'this netd builds vxlan, got "{config.backend.type}"'))
    return ConfigEntry(None, Invalid(where, errors)) if errors else ConfigEntry(config)


def leases(snapshot: Mapping[str, Entry]) -> list[Lease]:
    return [entry.lease for entry in snapshot.values() if isinstance(entry, LeaseEntry)]


def network_config(snapshot: Mapping[str, Entry]) -> NetworkConfig | None:
    """None when there is none yet. Raises Invalid when there is one that cannot be used."""
    entry = snapshot.get(CONFIG)
    if not isinstance(entry, ConfigEntry):
        return None
    if entry.error is not None:
        # a new exception each time: raising the same one again and again would grow its traceback
        raise Invalid(entry.error.where, entry.error.errors)
    return entry.config


def lease_of(snapshot: Mapping[str, Entry], key: str) -> tuple[LeaseValue | None, int]:
    """Value and etcd lease of the lease with this key; (None, 0) when it is not there."""
    entry = snapshot.get(SUBNETS + key)
    return (entry.lease.value, entry.etcd_lease) if isinstance(entry, LeaseEntry) else (None, 0)
