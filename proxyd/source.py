"""What the store says, as one view for the sync.

Owns: the mirrors proxyd follows (services, endpoint slices, this node's object,
flannel's network config, the cluster config). Invariant: there is no view before
the first complete list of services and of slices, and changes are taken before
the values they belong to, so none is lost. A network that was known once stays
known: a config that became unreadable changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from podlane.api.codec import decode
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.ranges import service_networks
from podlane.api.types import ZONE_LABEL, ClusterConfig, EndpointSlice, Node, Service
from podlane.runtime.clock import Clock
from podlane.runtime.runner import NotReady
from podlane.store import keys
from podlane.store.interface import Store
from podlane.store.mirror import Mirror
from podlane.store.registry import Registry
from proxyd.lean import lean_service, lean_slice


@dataclass(frozen=True, slots=True)
class View:
    """With `complete` the mappings are everything there is, else what changed (None: gone).

    `pod_networks` and `service_ranges` are networks of both families in CIDR form.
    `zone` and `internal_ips` are this node's, as far as its object says; `leaving`:
    it is being deleted. `revision`: the store's, up to which `slices` is complete; 0 unknown.
    """

    complete: bool
    services: Mapping[str, Service | None]
    slices: Mapping[str, EndpointSlice | None]
    pod_networks: tuple[str, ...]
    service_ranges: tuple[str, ...]
    zone: str = ""
    internal_ips: tuple[str, ...] = ()
    leaving: bool = False
    revision: int = 0


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
        node: str,
        network_prefix: str,
        on_change: Callable[[], None],
        clock: Clock,
        pod_networks: Sequence[str] = (),
        service_ranges: Sequence[str] = (),
    ) -> None:
        registry = Registry(store, clock=clock)
        self._services = registry.mirror(Service, on_change, keep=lean_service)
        self._slices = registry.mirror(EndpointSlice, on_change, keep=lean_slice)
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
        # one key: of the others' objects, which change with every heartbeat of theirs, it needs none
        self._node: Mirror[Node] = Mirror(
            store,
            keys.key_for(Node, "", node),
            decode=lambda kv: decode(Node, kv.value),
            on_change=on_change,
            name="node",
            clock=clock,
        )
        self._fixed_pod_networks = tuple(pod_networks)
        self._fixed_service_ranges = tuple(service_ranges)
        self._pod_networks = self._fixed_pod_networks
        self._service_ranges = self._fixed_service_ranges

    @property
    def _mirrors(
        self,
    ) -> tuple[Mirror[Service], Mirror[EndpointSlice], Mirror[NetworkConfig], Mirror[ClusterConfig], Mirror[Node]]:
        return self._services, self._slices, self._network, self._cluster, self._node

    @property
    def threads(self) -> list[tuple[str, Callable[[threading.Event], None]]]:
        """Name and body of each thread that must run."""
        return [(f"mirror-{mirror.name}", mirror.run) for mirror in self._mirrors]

    def not_ready(self) -> str | None:
        """For Daemon.add_ready_check: which list is not there yet."""
        return next((reason for mirror in self._mirrors if (reason := mirror.not_ready())), None)

    def take(self, *, complete: bool) -> View:
        if reason := self.not_ready():
            raise NotReady(f"read store: {reason}")
        pod_networks, service_ranges = self._networks()
        revision = self._slices.revision
        taken = (self._services.take_changes(), self._slices.take_changes())
        whole = complete or taken[0] is None or taken[1] is None
        node = self._node.get("")
        services: Mapping[str, Service | None]
        slices: Mapping[str, EndpointSlice | None]
        if whole:
            services, slices = self._services.snapshot(), self._slices.snapshot()
        else:
            services = {name: self._services.get(name) for name in taken[0] or ()}
            slices = {name: self._slices.get(name) for name in taken[1] or ()}
        return View(
            whole,
            services,
            slices,
            pod_networks,
            service_ranges,
            zone=node.metadata.labels.get(ZONE_LABEL, "") if node else "",
            internal_ips=tuple(a.address for a in node.status.addresses if a.type == "InternalIP") if node else (),
            leaving=node is not None and node.metadata.deletion_timestamp is not None,
            revision=revision,
        )

    def pod_networks(self) -> tuple[str, ...]:
        """The pod networks as they are known. Raises NotReady."""
        if reason := self.not_ready():
            raise NotReady(f"read store: {reason}")
        return self._networks()[0]

    def _networks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        config, cluster = self._network.get(""), self._cluster.get("")
        if not self._fixed_pod_networks and config is not None:
            self._pod_networks = tuple(map(str, config.networks))
        if not self._fixed_service_ranges and cluster is not None:
            self._service_ranges = tuple(map(str, service_networks(cluster)))
        if not self._pod_networks:
            raise NotReady(f"read store: no network config at {self._network_key} yet")
        return self._pod_networks, self._service_ranges
