"""What the store says, as one view for the sync.

Owns: the four mirrors proxyd follows (services, endpoint slices, flannel's
network config, the cluster config). Invariant: there is no view before the
first complete list of services and of slices, and changes are taken before the
values they belong to, so none is lost. A network that was known once stays
known: a config that became unreadable changes nothing.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from podlane.api.codec import decode
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.types import ClusterConfig, EndpointSlice, Service
from podlane.runtime.clock import Clock
from podlane.runtime.runner import NotReady
from podlane.store import keys
from podlane.store.interface import Store
from podlane.store.mirror import Mirror
from podlane.store.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class View:
    """With `complete` the mappings are everything there is, else what changed (None: gone).

    `pod_networks` and `service_ranges` are IPv4 networks in CIDR form.
    """

    complete: bool
    services: Mapping[str, Service | None]
    slices: Mapping[str, EndpointSlice | None]
    pod_networks: tuple[str, ...]
    service_ranges: tuple[str, ...]


class Source(Protocol):
    def take(self, *, complete: bool) -> View:
        """What changed since the last call, or all of it. Raises NotReady."""
        ...


class StoreSource:
    """The mirrors. `pod_networks` and `service_ranges`, when given, count instead of the stored configs."""

    def __init__(
        self,
        store: Store,
        *,
        network_prefix: str,
        on_change: Callable[[], None],
        clock: Clock,
        pod_networks: Sequence[str] = (),
        service_ranges: Sequence[str] = (),
    ) -> None:
        registry = Registry(store, clock=clock)
        self._services = registry.mirror(Service, on_change)
        self._slices = registry.mirror(EndpointSlice, on_change)
        self._network_key = f"{network_prefix.rstrip('/')}/config"
        self._network: Mirror[NetworkConfig] = Mirror(
            store,
            self._network_key,
            decode=lambda kv: parse_config(kv.value, kv.key),
            on_change=on_change,
            name="network-config",
            clock=clock,
        )
        self._cluster: Mirror[ClusterConfig] = Mirror(
            store,
            keys.CLUSTER_CONFIG,
            decode=lambda kv: decode(ClusterConfig, kv.value),
            on_change=on_change,
            name="cluster-config",
            clock=clock,
        )
        self._fixed_pod_networks = tuple(pod_networks)
        self._fixed_service_ranges = tuple(service_ranges)
        self._pod_networks = self._fixed_pod_networks
        self._service_ranges = self._fixed_service_ranges

    @property
    def threads(self) -> list[tuple[str, Callable[[threading.Event], None]]]:
        """Name and body of each thread that must run."""
        mirrors = (self._services, self._slices, self._network, self._cluster)
        return [(f"mirror-{mirror.name}", mirror.run) for mirror in mirrors]

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check: which list is not there yet."""
        mirrors = (self._services, self._slices, self._network, self._cluster)
        return next((reason for mirror in mirrors if (reason := mirror.not_ready())), None)

    def take(self, *, complete: bool) -> View:
        if reason := self.not_ready():
            raise NotReady(f"read store: {reason}")
        pod_networks, service_ranges = self._networks()
        changes = (self._services.take_changes(), self._slices.take_changes())
        if complete or changes[0] is None or changes[1] is None:
            return View(True, self._services.snapshot(), self._slices.snapshot(), pod_networks, service_ranges)
        services, slices = _values(self._services, changes[0]), _values(self._slices, changes[1])
        return View(False, services, slices, pod_networks, service_ranges)

    def pod_networks(self) -> tuple[str, ...]:
        """The pod networks as they are known. Raises NotReady."""
        if reason := self.not_ready():
            raise NotReady(f"read store: {reason}")
        return self._networks()[0]

    def _networks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        config, cluster = self._network.get(""), self._cluster.get("")
        if not self._fixed_pod_networks and config is not None and config.network is not None:
            self._pod_networks = (str(config.network),)
        if not self._fixed_service_ranges and cluster is not None:
            network = ipaddress.ip_network(cluster.service_cidr, strict=False)
            self._service_ranges = (str(network),) if network.version == 4 else ()
        if not self._pod_networks:
            raise NotReady(f"read store: no network config with an IPv4 network at {self._network_key} yet")
        return self._pod_networks, self._service_ranges


def _values(mirror: Mirror[T], names: Collection[str]) -> dict[str, T | None]:
    return {name: mirror.get(name) for name in names}
