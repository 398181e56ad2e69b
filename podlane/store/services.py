"""Services into the store, with what they have to be given first.

Owns: the loop of pick, write, and pick again what another writer was faster to
get. Invariants: what a service asks for by name it gets or is refused by the
name of the field; what it has it keeps; one transaction writes the service and
takes and returns all its addresses and ports (claims.py). Source: the
allocators of Kubernetes' service storage (pkg/registry/core/service/storage).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from podlane.api import ranges, services
from podlane.api.defaults import service_spec
from podlane.api.fields import Errors
from podlane.api.meta import short_name
from podlane.api.types import ClusterConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec
from podlane.api.validation_service import check_reach
from podlane.errors import AlreadyExists, Conflict, FieldError, Invalid, NotFound
from podlane.store import keys
from podlane.store.claims import claims_of
from podlane.store.families import family_of, with_families
from podlane.store.namespaces import Admission
from podlane.store.pools import Pool, address_error, address_pool, port_error, port_pool
from podlane.store.rules import at_revision, change, creation, key_of
from podlane.store.writes import Lost, Write, commit

if TYPE_CHECKING:
    from podlane.store.registry import Registry

MAX_LOST = 3
"""Transactions lost to others before the taken ones are listed."""

MAX_CHANGES = 120
"""Keys that one transaction can write, below etcd's --max-txn-ops of 128; a service with more node ports is refused."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Where addresses and node ports come from."""

    networks: tuple[ranges.Network, ...]
    ports: range

    @classmethod
    def of(cls, config: ClusterConfig) -> Ranges:
        """Raises Invalid."""
        return cls(ranges.service_networks(config), ranges.node_ports(config))

    def pools(self) -> dict[str, Pool]:
        """By family, and "" the node ports."""
        return {"": port_pool(self.ports)} | {family_of(network): address_pool(network) for network in self.networks}


def create(registry: Registry, new: Service) -> Service:
    """Raises AlreadyExists, Invalid, RangeFull, StoreUnavailable."""
    new = served(None, msgspec.structs.replace(new, spec=service_spec(new.spec)))
    return _place(registry, None, new)


def replace(registry: Registry, old: Service, new: Service) -> Service:
    """`new` went through rules.replacement. Raises NotFound, Conflict, Invalid, RangeFull, StoreUnavailable."""
    new = served(old, new)
    if new == old:
        return old
    if new.spec == old.spec:
        return at_revision(new, _write(registry, old, change(old, new)))
    return _place(registry, old, new)


def served(old: Service | None, new: Service) -> Service:
    """Without a cloud, a load balancer serves at its loadBalancerIP, and its status says so.

    What somebody else wrote there stays. A service with a loadBalancerClass is its implementation's alone.
    """
    ours = () if old is None else _own_ingress(old.spec)
    ingress = new.status.load_balancer.ingress
    if ingress not in ((), ours):
        return new
    status = msgspec.structs.replace(new.status, load_balancer=LoadBalancerStatus(ingress=_own_ingress(new.spec)))
    return msgspec.structs.replace(new, status=status)


def _own_ingress(spec: ServiceSpec) -> tuple[LoadBalancerIngress, ...]:
    if spec.type != "LoadBalancer" or spec.load_balancer_class or not spec.load_balancer_ip:
        return ()
    return (LoadBalancerIngress(ip=spec.load_balancer_ip, ip_mode="VIP"),)


def _place(registry: Registry, old: Service | None, new: Service) -> Service:
    placement = Placement(old, new, Ranges.of(registry.cluster_config()), registry.rng)
    deadline = registry.deadline()
    tries = 0
    while True:
        try:
            placed = placement.attempt()
        except _Unknown:
            placement.taken = _all_taken(registry)
            tries = 0
            placed = placement.attempt(listed=True)
        rests_on = Admission(registry).compares(placed) if old is None else ()
        write = creation(placed).resting_on(rests_on) if old is None else change(old, placed)
        placement.check_size(write)
        outcome = commit(registry.store, write, registry.fence)
        if not isinstance(outcome, Lost):
            return at_revision(placed, outcome.revision)
        _check_own(old, new, outcome)
        others = outcome.found.keys() - {key_of(new), *(compare.key for compare in rests_on)}
        placement.learn({key for key in others if outcome.found[key] is not None})
        tries += 1
        if tries >= MAX_LOST:
            placement.taken = _all_taken(registry)
        registry.check(deadline)


def _write(registry: Registry, old: Service, write: Write) -> int:
    outcome = commit(registry.store, write, registry.fence)
    if isinstance(outcome, Lost):
        _check_own(old, old, outcome)
        raise Conflict(f"update {short_name(old)}: it has changed since it was read")
    return outcome.revision


def _check_own(old: Service | None, new: Service, lost: Lost) -> None:
    """Raises if the service's own key is what was lost, and not one that it wanted."""
    found = lost.found[key_of(new)]
    if old is None:
        if found is not None:
            raise AlreadyExists(f"create {short_name(new)}: already exists")
    elif found is None:
        raise NotFound(f"update {short_name(old)}: not found")
    elif found.mod_revision != int(old.metadata.resource_version):
        raise Conflict(f"update {short_name(old)}: it has changed since it was read")


def _all_taken(registry: Registry) -> set[str]:
    return {
        kv.key for prefix in (keys.SERVICE_IPS, keys.SERVICE_NODE_PORTS) for kv in registry.store.list(prefix).items
    }


class _Unknown(Exception):
    """Guessing found nothing free: what is taken has to be listed."""


class Placement:
    """One service and what it lacks. `taken` are the keys that others are known to have. Does no I/O."""

    def __init__(self, old: Service | None, new: Service, limits: Ranges, rng: random.Random) -> None:
        """Raises Invalid: for what it asks for and cannot have whatever others do."""
        reach = Errors()
        check_reach(new.spec, "spec", reach)
        spec, errors = with_families(new.spec, None if old is None else old.spec, limits.networks)
        errors = reach.found + errors
        self._old = old
        self._new = msgspec.structs.replace(new, spec=spec)
        self._pools = limits.pools()
        self._rng = rng
        held = claims_of(old)
        self._asked = {key: field for key, field in claims_of(self._new).items() if key not in held}
        self.taken: set[str] = set()
        if not errors:
            errors = list(self._out_of_range(limits))
        self._raise(errors)

    def _out_of_range(self, limits: Ranges) -> Sequence[FieldError]:
        networks = {family_of(network): network for network in limits.networks}
        asked = set(self._asked.values())
        wrong: list[FieldError] = []
        for index, address in enumerate(services.cluster_ips(self._new.spec)):
            field = f"spec.clusterIPs[{index}]" if index else "spec.clusterIP"
            family = services.family_of(address)
            network = networks.get(family) if family else None
            if field in asked and network is not None and (error := address_error(address, network)):
                wrong.append(FieldError(field, error))
        for field, port in services.used_node_ports(self._new.spec):
            if field in asked and (error := port_error(port, limits.ports)):
                wrong.append(FieldError(field, error))
        return wrong

    def attempt(self, *, listed: bool = False) -> Service:
        """The service with all it needs. Raises RangeFull, or _Unknown unless what is taken was `listed`."""
        spec = self._new.spec
        used = self.taken | claims_of(self._new).keys() | claims_of(self._old).keys()

        def pick(pool: Pool) -> str:
            entry = pool.guess(used, self._rng)
            if entry is None:
                if not listed:
                    raise _Unknown
                entry = pool.free(used, self._rng)
            used.add(pool.key(entry))
            return entry

        changes: dict[str, Any] = {}
        if services.has_cluster_ip(spec):
            changes.update(self._addresses(spec, pick))
        if services.wants_node_ports(spec):
            changes["ports"] = self._ports(spec, pick)
        if services.has_health_check(spec) and not spec.health_check_node_port:
            changes["health_check_node_port"] = int(pick(self._pools[""]))
        placed = msgspec.structs.replace(self._new, spec=msgspec.structs.replace(spec, **changes))
        if self._old is None:
            return placed
        was = self._old.metadata.generation
        metadata = msgspec.structs.replace(placed.metadata, generation=was + (placed.spec != self._old.spec))
        return msgspec.structs.replace(placed, metadata=metadata)

    def _addresses(self, spec: ServiceSpec, pick: Any) -> dict[str, Any]:
        if services.is_headless(spec):
            return {"cluster_ip": services.HEADLESS, "cluster_ips": (services.HEADLESS,)}
        addresses = list(services.cluster_ips(spec))
        addresses += [pick(self._pools[family]) for family in spec.ip_families[len(addresses) :]]
        return {"cluster_ip": addresses[0], "cluster_ips": tuple(addresses)}

    def _ports(self, spec: ServiceSpec, pick: Any) -> tuple[ServicePort, ...]:
        # in a new service the protocols of one port number share a node port, as DNS would have it
        shared = {port.port: port.node_port for port in spec.ports if port.node_port} if self._old is None else {}
        ports: list[ServicePort] = []
        for port in spec.ports:
            if port.node_port:
                ports.append(port)
                continue
            number = shared.get(port.port) or int(pick(self._pools[""]))
            if self._old is None:
                shared[port.port] = number
            ports.append(msgspec.structs.replace(port, node_port=number))
        return tuple(ports)

    def learn(self, taken: set[str]) -> None:
        """Others have these. Raises Invalid if one is what the service asks for by name."""
        self._raise(
            [
                FieldError(field, f"{key.rpartition('/')[2]} is allocated already")
                for key, field in self._asked.items()
                if key in taken
            ]
        )
        self.taken |= taken

    def check_size(self, write: Write) -> None:
        """Raises Invalid if etcd would not take it, now or when the service is deleted."""
        changes = max(len(write.compare), len(write.ops), 1 + len(claims_of(self._new)))
        if changes > MAX_CHANGES:
            error = f"expected fewer node ports: at most {MAX_CHANGES} keys change at once, got {changes}"
            self._raise([FieldError("spec.ports", error)])

    def _raise(self, errors: Sequence[FieldError]) -> None:
        if errors:
            raise Invalid(short_name(self._new), list(errors))
