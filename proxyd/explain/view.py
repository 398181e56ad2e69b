"""A host as one sees it without asking its proxyd: what the store wants, what the kernel has.

Owns: putting these together for `proxyd services`, `plan`, `ruleset` and `trace`,
which must work just when proxyd does not run. Nothing is changed. What only the
running proxyd knows (which elements the kernel refused) is taken from its answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from podlane.api.codec import DecodeError, decode
from podlane.api.network import parse_config
from podlane.api.ranges import service_networks
from podlane.api.types import ZONE_LABEL, ClusterConfig, EndpointSlice, Node, Service
from podlane.errors import NotFound, PodlaneError
from podlane.runtime import namespace, nftables
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from podlane.store import keys
from podlane.store.config import connect
from podlane.store.interface import Store
from podlane.store.registry import Registry
from proxyd.addresses import NodeAddresses
from proxyd.desired import Index
from proxyd.explain.answers import Answers
from proxyd.explain.intervals import read_networks
from proxyd.explain.names import Names
from proxyd.nft import KernelNft
from proxyd.nftmsg import TABLES
from proxyd.options import Site
from proxyd.ruleset import POD_NETWORKS, SERVICE_RANGES, Skeleton
from proxyd.serving import Place
from proxyd.tables import FAMILIES, Family, Tables, show_address, unpack_frontend

_LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says. `undecodable`: keys of objects that cannot be read, which are left out."""

    services: Mapping[str, Service] = field(default_factory=dict)
    slices: Mapping[str, EndpointSlice] = field(default_factory=dict)
    pod_networks: tuple[str, ...] = ()
    service_ranges: tuple[str, ...] = ()
    zone: str = ""
    internal_ips: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelState:
    """What the kernel has: a family's tables where there is a table that can be read, else why it cannot."""

    tables: Mapping[Family, Tables]
    skeletons: Mapping[Family, Skeleton]
    unreadable: Mapping[Family, str]
    local: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """Both together. `index` is what this proxy would serve, made of the store alone."""

    stored: Stored
    kernel: KernelState
    index: Index

    @cached_property
    def names(self) -> Names:
        return Names(self.index)

    def skeleton(self, family: Family) -> Skeleton | None:
        """The static part that the store asks for; None when the family is not in use."""
        pods, services = _of(self.stored.pod_networks, family), _of(self.stored.service_ranges, family)
        return Skeleton(pods, services, family=family) if pods or services else None


@contextmanager
def opened(site: Site) -> Iterator[Store]:
    """The store. Raises PodlaneError."""
    store = connect(site.store)
    try:
        yield store
    finally:
        store.close()


def look(site: Site, store: Store, answers: Answers) -> Seen:
    """Look at everything once. Raises StoreUnavailable, PodlaneError."""
    stored = read_store(store, site)
    kernel = read_kernel()
    return Seen(stored, kernel, index_of(stored, place_of(site, stored, answers), answers))


def read_store(store: Store, site: Site) -> Stored:
    """Raises StoreUnavailable, Invalid."""
    registry = Registry(store)
    services, slices = registry.list(Service), registry.list(EndpointSlice)
    pods, ranges = tuple(site.cluster_cidr), tuple(site.service_cidr)
    network_key = f"{site.etcd_prefix.rstrip('/')}/config"
    if not pods and (kv := store.get(network_key)) is not None:
        pods = tuple(map(str, parse_config(kv.value, network_key).networks))
    if not ranges and (kv := store.get(keys.CLUSTER_CONFIG)) is not None:
        ranges = tuple(map(str, service_networks(decode(ClusterConfig, kv.value))))
    zone = ""
    addresses: tuple[str, ...] = ()
    try:
        node = registry.get(Node, "", site.node)
    except (NotFound, DecodeError):
        pass  # proxyd does without it as well
    else:
        zone = node.metadata.labels.get(ZONE_LABEL, "")
        addresses = tuple(each.address for each in node.status.addresses if each.type == "InternalIP")
    return Stored(
        {f"{each.metadata.namespace}/{each.metadata.name}": each for each in services.items},
        {f"{each.metadata.namespace}/{each.metadata.name}": each for each in slices.items},
        pods,
        ranges,
        zone,
        addresses,
        (*services.undecodable, *slices.undecodable),
    )


def place_of(site: Site, stored: Stored, answers: Answers) -> Place:
    """Where the proxy stands: as the running one says, or as a new one would find."""
    if answers.status is not None:
        said = answers.status
        return Place(
            str(said.get("node", site.node)), str(said.get("zone", "")), tuple(said.get("nodePortAddresses", ()))
        )
    addresses = NodeAddresses()
    try:
        chosen = addresses.select(site.nodeport_addresses, stored.internal_ips)
    finally:
        addresses.close()
    return Place(site.node, stored.zone, chosen)


def index_of(stored: Stored, place: Place, answers: Answers) -> Index:
    """What is wanted here; what the kernel refused to the running proxyd is left out, as it does."""
    index = Index(place)
    index.replace(stored.services, stored.slices)
    refused: Mapping[str, str] = (answers.status or {}).get("leftOut", {})
    if refused:
        for frontend in list(index.frontends):
            if (name := str(unpack_frontend(frontend))) in refused:
                index.left_out[frontend] = refused[name]
        for address in {*index.addresses, *index.hairpin}:
            if (name := show_address(address)) in refused:
                index.left_out[address] = refused[name]
    return index


def read_kernel() -> KernelState:
    """Both tables as they are. Raises PodlaneError (no permission)."""
    try:
        nft, netfilter, addresses = KernelNft(), NetlinkSocket(NETLINK_NETFILTER), NodeAddresses()
    except OSError as error:
        raise PodlaneError(f"look at the kernel: {(error.strerror or str(error)).lower()} (needs root)") from error
    tables: dict[Family, Tables] = {}
    skeletons: dict[Family, Skeleton] = {}
    unreadable: dict[Family, str] = {}
    try:
        for family in FAMILIES:
            if not nftables.exists(netfilter, TABLES[family]):
                continue
            try:
                tables[family] = nft.dump(family)
                pods, services = (read_networks(netfilter, family, name) for name in (POD_NETWORKS, SERVICE_RANGES))
            except NetlinkError as error:
                tables.pop(family, None)
                unreadable[family] = f"table {family.name} podlane is not as this version of proxyd has it: {error}"
            else:
                skeletons[family] = Skeleton(pods, services, family=family)
        local = addresses.addresses()
    finally:
        nft.close()
        netfilter.close()
        addresses.close()
    return KernelState(tables, skeletons, unreadable, local | _LOOPBACK)


def has_static_part(skeleton: Skeleton, found: Skeleton | None) -> bool:
    """Whether the table's rules, hooks and networks (`found`) are those of the skeleton.

    Found out by loading the skeleton into a network namespace of its own, which is gone afterwards: what the
    kernel makes of it there is compared with what it has here, byte for byte. Not the networks: the same ones
    are listed with a further mark at their end once they were loaded a second time (Linux 6.18).
    """
    if skeleton != found:
        return False
    nft = KernelNft()
    try:
        here = nft.static_part(skeleton.family)[:2]
    except NetlinkError:
        return False
    finally:
        nft.close()
    there: list[object] = []
    failed: list[Exception] = []

    def load() -> None:
        try:
            namespace.leave_for_a_new_one()
            nft = KernelNft()
            try:
                nft.load(skeleton)
                there.append(nft.static_part(skeleton.family)[:2])
            finally:
                nft.close()
        except (OSError, PodlaneError) as error:
            failed.append(error)

    thread = threading.Thread(target=load, name="skeleton")
    thread.start()
    thread.join()
    if failed:
        raise PodlaneError(f"compare the static part: {failed[0]}") from failed[0]
    return there == [here]


def _of(networks: tuple[str, ...], family: Family) -> tuple[str, ...]:
    return tuple(sorted(each for each in networks if (":" in each) == (family.width == 16)))
