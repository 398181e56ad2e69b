"""The index: a change touches what it changed, two services on one address, slices that move."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from proxyd_objects import PLACE, VIP, addresses, frontend, index_of, service, shown, slice_of
from proxyd_random import NAMES, PLACES, services, slices

from proxyd.desired import Index
from proxyd.serving import Place, is_proxied, serve, serve_any

pytestmark = pytest.mark.unit

WEB, OTHER = frontend(f"{VIP}:80"), frontend("10.96.0.2:80")


def targets(index, at=WEB):
    wanted = index.wanted(at)
    return None if wanted is None else shown(wanted.inside)


def test_two_services_on_one_address_the_lower_name_wins_and_the_other_waits():
    index = Index(PLACE)
    a, b = service("a", VIP), service("b", VIP)
    index.update(
        {"default/b": b}, {"default/b-1": slice_of("b", ["10.5.1.9"]), "default/a-1": slice_of("a", ["10.5.1.2"])}
    )
    assert targets(index) == ["10.5.1.9:8080"]
    touched = index.update({"default/a": a}, {})
    assert touched.frontends == {WEB}
    assert targets(index) == ["10.5.1.2:8080"]
    assert [str(clash) for clash in index.clashes] == [
        "serve default/b: 10.96.0.1:80/tcp already belongs to service default/a"
    ]
    touched = index.update({"default/a": None}, {})
    assert touched.frontends == {WEB}
    assert not touched.addresses  # b has it still
    assert targets(index) == ["10.5.1.9:8080"]
    assert index.clashes == []


def test_three_on_one_frontend_go_one_after_another():
    index = index_of(*(service(name, VIP) for name in "abc"))
    assert [clash.refused for clash in index.clashes] == ["default/b", "default/c"]
    for name, left in (("b", ["default/c"]), ("a", [])):
        index.update({f"default/{name}": None}, {})
        assert [clash.refused for clash in index.clashes] == left
    assert index.owner(WEB) == "default/c"
    index.update({"default/c": None}, {})
    assert list(index.frontends) == []


def test_an_update_touches_only_what_it_changed():
    index = index_of(
        service("a", VIP),
        service("b", "10.96.0.2"),
        slice_of("a", ["10.5.1.2"]),
        slice_of("b", ["10.5.1.3"]),
    )
    touched = index.update({}, {"default/b-1": slice_of("b", ["10.5.1.3", "10.5.1.4"])})
    assert (touched.frontends, touched.addresses, addresses(touched.hairpin)) == ({OTHER}, set(), {"10.5.1.4"})
    assert not index.update({"default/a": service("a", VIP, labels={"x": "y"})}, {}).frontends


def test_a_slice_that_moves_to_another_service_leaves_the_first():
    index = Index(PLACE)
    index.replace(
        {"default/a": service("a", VIP), "default/b": service("b", "10.96.0.2")},
        {"default/s": slice_of("a", ["10.5.1.2"])},
    )
    touched = index.update({}, {"default/s": slice_of("b", ["10.5.1.2"])})
    assert touched.frontends == {WEB, OTHER}
    assert addresses(index.hairpin) == {"10.5.1.2"}
    assert (targets(index), targets(index, OTHER)) == ([], ["10.5.1.2:8080"])


def test_slices_before_their_service_and_without_one():
    index = Index(PLACE)
    index.update({}, {"default/web-1": slice_of("web", ["10.5.1.2"])})
    assert not list(index.frontends)
    index.update({"default/web": service("web", VIP)}, {})
    assert targets(index) == ["10.5.1.2:8080"]


def test_whole_lists_take_away_what_is_not_in_them():
    index = index_of(service("a", VIP), service("b", "10.96.0.2"), slice_of("a", ["10.5.1.2"]))
    touched = index.replace({"default/a": service("a", VIP)}, {})
    assert touched.frontends == {WEB, OTHER}
    assert (targets(index), targets(index, OTHER)) == ([], None)
    assert index.proxied == 1


def test_moving_touches_what_depends_on_the_place():
    index = index_of(
        service("a", VIP),
        service("near", "10.96.0.2"),
        slice_of("a", ["10.5.1.2"]),
        slice_of("near", ["10.5.1.3 @zone1", "10.5.2.3 node2 @zone2"]),
    )
    assert not index.move(PLACE).frontends
    assert index.move(Place("node1", "zone2", PLACE.node_addresses)).frontends == {OTHER}
    assert targets(index, OTHER) == ["10.5.2.3:8080"]


def test_what_is_left_out_comes_back_with_any_change_of_its_service():
    index = index_of(service("a", VIP), service("b", "10.96.0.2"), slice_of("a", ["10.5.1.2"]))
    index.left_out.update({WEB: "no", WEB[:4]: "no", frontend("10.5.1.2:0")[:4]: "no"})
    assert index.wanted(WEB) is None
    assert not index.is_member(index.addresses, WEB[:4])
    assert not index.update({"default/b": service("b", "10.96.0.2", "81")}, {}).addresses
    assert len(index.left_out) == 3
    touched = index.update({"default/a": service("a", VIP, labels={"x": "y"})}, {})
    assert (touched.frontends, touched.addresses, addresses(touched.hairpin)) == ({WEB}, {WEB[:4]}, {"10.5.1.2"})
    assert index.left_out == {}


def test_who_uses_what():
    index = index_of(
        service("a", VIP),
        service("b", VIP),
        service("c", "10.96.0.2"),
        slice_of("a", ["10.5.1.2"]),
        slice_of("c", ["10.5.1.2"]),
    )
    assert index.users(WEB) == ["default/a"]
    assert index.users(WEB[:4]) == ["default/a", "default/b"]
    assert index.users(frontend("10.5.1.2:0")[:4]) == ["default/a", "default/c"]
    assert index.users(frontend("10.96.0.9:80")) == []


@settings(max_examples=200)
@given(st.sampled_from(NAMES).flatmap(services), st.lists(st.integers(1, 4).flatmap(slices), max_size=2), PLACES)
def test_a_service_resolved_by_the_short_way_is_what_the_long_way_makes_of_it(service, slices, place):
    assume(is_proxied(service))
    both = [how(service, [each for _, each in slices], place) for how in (serve, serve_any)]
    short, long = (each._replace(hairpin=tuple(sorted(each.hairpin))) for each in both)
    assert short == long


PLAIN = slice_of("web", ["10.5.1.2", "10.5.1.3 node2", "10.5.1.2 -"])


@pytest.mark.parametrize("spec", [{}, {"publish_not_ready_addresses": True}, {"labels": {"x": "y"}}])
def test_plain_services_by_both_ways(spec):
    web = service("web", VIP, "80", "81/UDP", **spec)
    short, long = serve(web, [PLAIN], PLACE), serve_any(web, [PLAIN], PLACE)
    assert short == long
    assert shown(short.frontends[WEB].inside) == ["10.5.1.2:8080", "10.5.1.3:8080"]
    assert shown(short.frontends[frontend(f"{VIP}:81/UDP")].inside) == []
