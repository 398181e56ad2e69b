"""The quick ways, for services that are like most and for an empty table, mean the same as the long ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyd_node import World
from proxyd_objects import VIP, service, slice_of
from proxyd_random import CHANGES, PLACES, meaning, slices, split

from podlane.api.types import EndpointSlice, Service
from proxyd import plan, serving
from proxyd.desired import Index
from proxyd.serving import NOTHING, Place, Served
from proxyd.tables import ENDPOINTS, FAMILIES, SERVICES, Frontend, Tables, pack_frontend, pack_mark

pytestmark = pytest.mark.unit

PLAIN = st.builds(
    lambda ip, ports: service("a", (ip,), *ports),
    st.sampled_from([VIP, "fd00:96::1"]),
    st.sampled_from([("x:80",), ("x:80", "y:53/UDP"), ("x:80", "x2:81")]),
)


def same(one: Served, other: Served) -> bool:
    """Addresses are in no particular order."""
    return one._replace(addresses=(), hairpin=()) == other._replace(addresses=(), hairpin=()) and all(
        sorted(left) == sorted(right)
        for left, right in ((one.addresses, other.addresses), (one.hairpin, other.hairpin))
    )


@given(PLAIN, st.lists(st.integers(1, 9).flatmap(slices), max_size=2), PLACES)
def test_an_ordinary_service_means_what_the_rules_for_all_services_say(
    web: Service, made: list[tuple[str, EndpointSlice]], place: Place
) -> None:
    behind = [each for _, each in made]
    assert same(serving.serve(web, behind, place), serving.serve_any(web, behind, place))


def test_most_services_go_the_quick_way() -> None:
    served = serving.serve(service("web", VIP), [slice_of("web", ["10.5.1.2", "10.5.1.3"])], Place("node1"))
    assert served is not NOTHING
    assert [len(wanted.inside) for wanted in served.frontends.values()] == [2]


@given(CHANGES, PLACES)
def test_an_empty_table_in_parts_is_what_it_is_in_one(changes: list[list[tuple[str, object]]], place: Place) -> None:
    index = Index(place)
    for each in changes:
        index.update(*split(each))  # type: ignore[arg-type]
    for family in FAMILIES:
        parts, whole = Tables(family), Tables(family)
        for part in plan.plan_parts(parts, index):
            parts.apply(part.now)
            assert not part.retire
        whole.apply(plan.plan_all(whole, index).now)
        assert meaning(parts) == meaning(whole)
        assert not plan.plan_all(parts, index).now


def many(count: int) -> list[Service | EndpointSlice]:
    made: list[Service | EndpointSlice] = []
    for number in range(count):
        name = f"s{number}"
        made += [service(name, f"10.96.{number >> 8}.{number & 255}"), slice_of(name, ["10.5.1.2", "10.5.1.3"])]
    return made


def test_many_services_come_in_parts_and_one_that_is_refused_keeps_no_other_away() -> None:
    world = World()
    bad = pack_frontend(Frontend("10.96.1.44", "TCP", 80))
    world.nft.refuse(ENDPOINTS, bad + pack_mark(0))
    world.sync(*many(5000))
    assert len(world.nft.tables[SERVICES]) == 4999
    assert bad not in world.nft.tables[SERVICES]
    assert [name for name, _ in world.told] == ["s300"]
    world.proxy.verify()
    assert world.proxy.not_ready() is None


def test_a_table_that_has_something_is_never_written_in_parts() -> None:
    world = World()
    world.sync(*many(6000))
    assert len(world.nft.commits) > 2
    world.nft.commits.clear()
    world.start()
    world.sync(*many(10))
    assert world.nft.commits == []
