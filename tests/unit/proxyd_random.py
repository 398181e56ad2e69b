"""Hypothesis strategies for everything a service may be, and what two tables that mean the same have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from proxyd_objects import NODE_ADDRESS, NODE_ADDRESS6, SKELETON, SKELETON6, service, slice_of

from podlane.api.types import EndpointSlice, Service
from proxyd.chains import OUTSIDE_SLOTS, Pick
from proxyd.serving import Place
from proxyd.tables import (
    ADDRESSES,
    ENDPOINTS,
    IPV4,
    MAPS,
    PICKS,
    Family,
    Key,
    Tables,
    Target,
    Value,
    pack_address,
    pack_frontend,
    pack_mark,
    unpack_frontend,
    unpack_target,
)
from proxyd.walk import Kernel, Packet, choices, every_outcome, walk

NAMES = ("a", "b", "c")
_IPS = {"a": ("10.96.0.1", "fd00:96::1"), "b": ("10.96.0.2", "fd00:96::2"), "c": ("10.96.0.1", "fd00:96::3")}
"""Services a and c claim one address."""
_BALANCES = (*[""] * 10, "maglev", "affinity-hash")
_EXTERNAL = ("198.51.100.1", "2001:db8:1::1")
_RANGES = (
    (),
    ("192.0.2.0/24", "2001:db8::/32"),
    ("192.0.2.0/25", "192.0.2.64/26", " 198.51.100.7/32", "2001:db8:ffff::/48", "10.5.0.0/16", "fd00:5::/48"),
)

CLIENTS = {4: ("10.5.9.9", NODE_ADDRESS, "192.0.2.1", "192.0.2.200"), 16: ("fd00:5::99", NODE_ADDRESS6, "2001:db8::1")}
"""A pod, this host, and clients outside, by the family's width."""


@st.composite
def services(draw: Any, name: str) -> Service:
    kind = draw(st.sampled_from(["ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))
    four, six = _IPS[name]
    outside = kind in {"NodePort", "LoadBalancer"}
    ports = draw(st.sampled_from([("x:80=30080",), ("x:80=30080", "y:53/UDP=30053"), ("y:53/UDP=30054", "x:80=30080")]))
    if not outside:
        ports = tuple(port.partition("=")[0] for port in ports)
    balancer = kind == "LoadBalancer"
    return service(
        name,
        draw(st.sampled_from([(four,), (four, six), (six, four), (four, six), ("None",)])),
        *ports,
        type=kind,
        balance=draw(st.sampled_from(_BALANCES)),
        affinity=draw(st.sampled_from([0, 0, 60, 10800])),
        external_ips=tuple(draw(st.sets(st.sampled_from(_EXTERNAL)))),
        ingress=draw(st.sampled_from([(), ("203.0.113.1", "2001:db8:2::1")])) if balancer else (),
        load_balancer_source_ranges=draw(st.sampled_from(_RANGES)) if balancer else (),
        internal_traffic_policy=draw(st.sampled_from(["Cluster", "Cluster", "Local"])),
        external_traffic_policy=draw(st.sampled_from(["Cluster", "Local"])) if outside else "",
        health_check_node_port=draw(st.sampled_from([0, 31000])) if balancer else 0,
    )


_WORDS = ("", "", "", "ending", "ended", "unready", "node2", "node2", "node2 ending", "@zone1", "@node1", "@zone2", "-")


@st.composite
def slices(draw: Any, number: int) -> tuple[str, EndpointSlice]:
    """A slice of one of the services, under one of few names."""
    prefix = draw(st.sampled_from(["10.5.1.", "10.5.1.", "fd00:5::"]))
    pods = draw(st.lists(st.tuples(st.integers(2, 8), st.sampled_from(_WORDS)), max_size=6, unique_by=lambda p: p[0]))
    ports = draw(st.sampled_from([("x:8080", "y:5353/UDP"), ("x:8080",), ("x:80", "y:5353/UDP")]))
    owner = draw(st.sampled_from(NAMES))
    return f"s{number}", slice_of(owner, [f"{prefix}{pod} {words}" for pod, words in pods], *ports)


_SLICES = st.integers(1, 4)
_OBJECTS = st.one_of(
    st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(f"default/{name}"), services(name))),
    _SLICES.flatmap(slices).map(lambda made: (f"default/{made[0]}", made[1])),
    _SLICES.flatmap(slices).map(lambda made: (f"default/{made[0]}", made[1])),
    st.sampled_from([*(f"default/{name}" for name in NAMES), *(f"default/s{n}" for n in range(1, 5))]).map(
        lambda name: (name, None)
    ),
)
PLACES = st.sampled_from(
    [
        Place("node1", "zone1", (NODE_ADDRESS, NODE_ADDRESS6)),
        Place("node1", "zone2", (NODE_ADDRESS,)),
        Place("node1", "", ()),
    ]
)
Change = tuple[str, Service | EndpointSlice | None]
CHANGES = st.lists(st.lists(_OBJECTS, min_size=1, max_size=4), min_size=1, max_size=6)
"""One list for each sync, of (name, object), None for one that is gone. A slice's name is s and a number."""


def split(changes: list[Change]) -> tuple[dict[str, Service | None], dict[str, EndpointSlice | None]]:
    """As Index.update takes them."""
    made = dict(changes)
    return (
        {name: each for name, each in made.items() if not _is_slice(name)},  # type: ignore[misc]
        {name: each for name, each in made.items() if _is_slice(name)},  # type: ignore[misc]
    )


def _is_slice(name: str) -> bool:
    return name.startswith("default/s")


# --- tables ----------------------------------------------------------------------------


def copied(tables: Tables) -> Tables:
    return Tables(tables.family, set(tables.chains), {name: dict(each) for name, each in tables.maps.items()})


def meaning(tables: Tables) -> dict[str, Any]:
    """The tables without what chance decides: who has which slot where that is free, ids, chains not in use."""
    same: dict[str, Any] = {name: tables[name] for name in MAPS if name not in {ENDPOINTS, PICKS, ADDRESSES}}
    slots: dict[tuple[str, Key, bool], Any] = {}
    ids: list[Any] = []
    count = 0
    for at in {key[:-4] for name in (ENDPOINTS, PICKS) for key in tables[name]}:
        for pick, base in regions(tables, at):
            name = PICKS if pick.affinity else ENDPOINTS
            values = [tables[name][at + pack_mark(base + slot)] for slot in range(pick.slots)]
            count += len(values)
            if pick.affinity:
                ids += set(values)
                values = [tables[ADDRESSES][value] for value in values]  # type: ignore[index]
            slots[name, at, base > 0] = values if pick.hashed else sorted(values)  # type: ignore[type-var]
    assert len(set(ids)) == len(ids), "two frontends share an id"
    return {
        **same,
        "slots": slots,
        "left over slots": len(tables[ENDPOINTS]) + len(tables[PICKS]) - count,
        "left over ids": len(tables[ADDRESSES]) - len(ids),
    }


def regions(tables: Tables, at: Key) -> Iterator[tuple[Pick, int]]:
    """How a frontend's connections are spread, and from which slot on."""
    inside, outside = tables.picks(at)
    if inside is not None and not inside.outside:
        yield inside, 0
    if outside is not None and outside.outside:
        yield outside, OUTSIDE_SLOTS


def behind(tables: Tables, at: Key) -> set[Target]:
    """Everybody a connection to the frontend may be sent to, from wherever it comes."""
    found: set[Any] = set()
    for pick, base in regions(tables, at):
        values = {tables[PICKS if pick.affinity else ENDPOINTS][at + pack_mark(base + n)] for n in range(pick.slots)}
        found |= {tables[ADDRESSES][each] for each in values} if pick.affinity else values  # type: ignore[index]
    return {unpack_target(each) for each in found}


def kernel_of(tables: Tables, later: Tables | None = None, affinity: Any = None) -> Kernel:
    four = tables.family is IPV4
    return Kernel(tables, SKELETON if four else SKELETON6, (NODE_ADDRESS, NODE_ADDRESS6), affinity or {}, later)


def packets(family: Family, *tables: Tables) -> Iterator[Packet]:
    """From everybody to every frontend that any of the tables knows."""
    for at in sorted({each for one in tables for name in ("services", "external") for each in one[name]}):
        where = unpack_frontend(at)
        for client in CLIENTS[family.width]:
            yield Packet(client, where.address, where.port, where.protocol)


def nobody_misses(before: Tables, after: Tables) -> None:
    """A packet between whose look-ups the commit fell finds someone, if there was and is someone for it."""
    for packet in packets(before.family, before):
        outcomes = [verdict for each in (before, after) for verdict in every_outcome(packet, kernel_of(each))]
        if any(verdict.action != "translate" for verdict in outcomes):
            continue
        targets = {each for tables in (before, after) for each in behind(tables, pack_frontend(packet.frontend))}
        for known in _remembered(before, packet):
            kernel = kernel_of(before, after, known)
            for pick in range(max(1, choices(packet, kernel))):
                verdict = walk(packet, kernel, pick=pick)
                assert verdict.target in targets, verdict.steps
            # and once all look-ups see the new tables, an endpoint that went has no client any more
            here = behind(after, pack_frontend(packet.frontend))
            for verdict in every_outcome(packet, kernel_of(after, affinity=known)):
                assert verdict.target in here, verdict.steps


def _remembered(tables: Tables, packet: Packet) -> Iterator[dict[Key, Value]]:
    """What the affinity map may say of the packet's client: nothing, or any id that its frontend has."""
    at = pack_frontend(packet.frontend)
    yield {}
    for pick, base in regions(tables, at):
        if pick.affinity:
            for value in {tables[PICKS][at + pack_mark(base + slot)] for slot in range(pick.slots)}:
                yield {at + pack_address(packet.source): value}
