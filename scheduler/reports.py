"""Decides what becomes of what nodes report of their pods. Pure.

Owns: whom is believed what. Invariants: of a pod only the node it is bound to is
believed, and of its status only what is its agent's to say (podlane.store.reports);
a finished pod stays finished; a pod has the addresses of its node's subnet, or
its node's own; a pod goes when it was told to and its node says that nothing is
left of it; a node without a heartbeat is not believed, and when it is back a pod
marked not ready meanwhile stays so until its agent has said anew what it is.
Source: Kubernetes' NodeRestriction and node authorizer. See ADR 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

from podlane.api.meta import is_pod_ready, namespaced_name, utcnow_from
from podlane.api.types import Node, Pod, PodReport, PodStatus
from podlane.store.enrolled import HostRecord
from podlane.store.keys import ReportKey, pod_report_key
from podlane.store.reports import carried_over, is_marked
from scheduler.view import Changes

Network = IPv4Network | IPv6Network

NO_POD = "there is no such pod"
ANOTHER_POD = "the pod of that name is another"
NOT_THERE = "the pod is not bound to that node"
NOT_DELETED = "it says that nothing is left of the pod, which nobody has deleted"


@dataclass(frozen=True, slots=True)
class Item:
    """A report of a pod, as of a store revision; `pod` is what the pod's key has, None for nothing."""

    key: ReportKey
    revision: int
    report: PodReport
    pod: Pod | None

    @property
    def report_key(self) -> str:
        return pod_report_key(self.key.node, self.key.namespace, self.key.name)

    @property
    def pod_name(self) -> str:
        return f"{self.key.namespace}/{self.key.name}"

    def __str__(self) -> str:
        return f"of node {self.key.node} on pod {self.pod_name}"


@dataclass(frozen=True, slots=True)
class Reporter:
    """What must be known of a node to believe it. `addresses` are its own, `networks` its pods'; empty: not known."""

    alive: bool
    addresses: tuple[Network, ...] = ()
    networks: tuple[Network, ...] = ()

    def allowed(self, address: str, *, on_host: bool) -> list[Network]:
        """Where an address of a pod must be, of its family. Raises ValueError for what is no address."""
        version = ip_address(address).version
        return [network for network in (self.addresses if on_host else self.networks) if network.version == version]


@dataclass(frozen=True, slots=True)
class Hosts:
    """What enrolment knows of nodes (podlane.store.enrolled). It holds, whatever the node says of itself."""

    records: Mapping[str, HostRecord] = field(default_factory=dict)
    owners: Mapping[Network, str] = field(default_factory=dict)
    """The node of each address."""

    @classmethod
    def of(cls, records: Mapping[str, HostRecord]) -> Hosts:
        return cls(records, {ip: name for name, record in records.items() for ip in _networks(record.addresses)})

    def after(self, changes: Changes[HostRecord]) -> Hosts:
        if not changes.objects and not changes.complete:
            return self
        known = {} if changes.complete else self.records
        return Hosts.of({name: record for name, record in {**known, **changes.objects}.items() if record is not None})

    def reporter(self, name: str, node: Node | None, *, alive: bool) -> Reporter:
        record = self.records.get(name, HostRecord())
        said = node or Node()
        addresses = _networks((*record.addresses, *(a.address for a in said.status.addresses if a.type != "Hostname")))
        return Reporter(
            alive,
            addresses=tuple(ip for ip in dict.fromkeys(addresses) if self.owners.get(ip, name) == name),
            networks=record.networks() or tuple(_networks(dict.fromkeys((said.spec.pod_cidr, *said.spec.pod_cidrs)))),
        )


@dataclass(frozen=True, slots=True)
class Stored:
    item: Item
    pod: Pod
    """The pod as it is to be."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`refuse` stays in the outbox, for what speaks against it may change; `drop` does not. Both say why."""

    store: tuple[Stored, ...] = ()
    remove: tuple[Item, ...] = ()
    refuse: tuple[tuple[Item, str], ...] = ()
    drop: tuple[tuple[Item, str], ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.store or self.remove or self.refuse or self.drop)

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        found = {name: len(getattr(self, name)) for name in ("store", "remove", "refuse", "drop")}
        return {name: size for name, size in found.items() if size}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        yield from (
            f"store status of pod {namespaced_name(stored.pod)}: {_summary(stored.pod)}" for stored in self.store
        )
        yield from (f"remove pod {item.pod_name}: {item.key.node} has ended it" for item in self.remove)
        yield from (f"refuse report {item}: {why}" for item, why in self.refuse)
        yield from (f"drop report {item}: {why}" for item, why in self.drop)


def plan(items: Iterable[Item], nodes: Mapping[str, Reporter], now: float) -> Plan:
    """Decide on each report by itself. `nodes` has every node that reports; `now` in Unix seconds."""
    store: list[Stored] = []
    remove: list[Item] = []
    refuse: list[tuple[Item, str]] = []
    drop: list[tuple[Item, str]] = []
    for item in items:
        pod, node = item.pod, nodes[item.key.node]
        if pod is None:
            drop.append((item, NO_POD))
        elif misdirected := _misdirected(item, pod):
            drop.append((item, misdirected))
        elif item.report.removed:
            if pod.metadata.deletion_timestamp is None:
                refuse.append((item, NOT_DELETED))
            elif not _has_ended(pod):
                remove.append(item)
        elif node.alive and not (is_marked(pod) and item.revision < int(pod.metadata.resource_version)):
            status = carried_over(pod, item.report.status, utcnow_from(now))
            if status is pod.status:
                continue
            if why := _misaddressed(pod, status, node):
                refuse.append((item, why))
            else:
                store.append(Stored(item, msgspec.structs.replace(pod, status=status)))
    return Plan(tuple(store), tuple(remove), tuple(refuse), tuple(drop))


def _networks(texts: Iterable[str]) -> Iterator[Network]:
    """Those that can be read: a node may say anything of itself."""
    for text in texts:
        with suppress(ValueError):
            yield ip_network(text)


def _misdirected(item: Item, pod: Pod) -> str:
    if item.report.uid != pod.metadata.uid:
        return ANOTHER_POD
    return "" if pod.spec.node_name == item.key.node else NOT_THERE


def _has_ended(pod: Pod) -> bool:
    """It only waits for its finalizers."""
    return bool(pod.metadata.finalizers) and not pod.metadata.deletion_grace_period_seconds


def _misaddressed(pod: Pod, status: PodStatus, node: Reporter) -> str:
    """Why the pod cannot have the addresses it newly has; "" when it can."""
    known = {pod.status.pod_ip, *(ip.ip for ip in pod.status.pod_ips), ""}
    for address in sorted({status.pod_ip, *(ip.ip for ip in status.pod_ips)} - known):
        said = f"it says that the pod has the address {address!r}"
        try:
            allowed = node.allowed(address, on_host=pod.spec.host_network)
        except ValueError:
            return f"{said}, which is none"
        if not any(ip_address(address) in network for network in allowed):
            of_node = f"not one of {' '.join(map(str, allowed))}" if allowed else "its node's are not known"
            return f"{said}, and {of_node}"
    return ""


def _summary(pod: Pod) -> str:
    return " ".join(filter(None, (pod.status.phase, "ready" if is_pod_ready(pod) else "not ready", pod.status.pod_ip)))
