"""Plans read as nft scripts: the order of things, what is left for later, what is cleaned in conntrack."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyd_objects import SKELETON, VIP, applied, frontend, index_of, script, service, settled, slice_of, target
from proxyd_random import copied, meaning, nobody_misses

from proxyd.plan import plan_all, unused_chains
from proxyd.slots import assign_slots, plan_retire
from proxyd.tables import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINTS,
    EXTERNAL,
    HAIRPIN,
    INSIDE,
    IPV4,
    PICKS,
    REFUSED,
    SERVICES,
    SOURCE_RANGES,
    Tables,
    pack_address,
    pack_mark,
)
from proxyd.walk import Kernel, Packet, walk

pytestmark = pytest.mark.unit

WEB = frontend(f"{VIP}:80")
A, B, C, D = (target(f"10.5.1.{i}:8080") for i in (2, 3, 4, 5))


def slot(number, at=WEB):
    return at + pack_mark(number)


def test_first_sync():
    index = index_of(
        service("web", VIP, "http:80", "dns:53/UDP"), slice_of("web", ["10.5.1.2"], "http:8080", "dns:53/UDP")
    )
    tables = Tables(IPV4, {"external-source"})
    assert str(plan_all(tables, index)) == script("""
        add chain ip podlane lb1
        add rule ip podlane lb1 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints
        add rule ip podlane lb1 drop
        add element ip podlane services { 10.96.0.1 . tcp . 80 : goto lb1 }
        add element ip podlane services { 10.96.0.1 . udp . 53 : goto lb1 }
        add element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000000 : 10.5.1.2 . 8080 }
        add element ip podlane endpoints { 10.96.0.1 . udp . 53 . 0x00000000 : 10.5.1.2 . 53 }
        add element ip podlane cluster_ips { 10.96.0.1 }
        add element ip podlane hairpin { 10.5.1.2 . 10.5.1.2 }
        # conntrack
        conntrack -D -p tcp --orig-dst 10.96.0.1 --dport 80 # stale
        conntrack -D -p udp --orig-dst 10.96.0.1 --dport 53 # stale
    """)


def test_an_empty_table_gets_the_chain_that_no_script_can_load():
    assert str(plan_all(Tables(IPV4), index_of())) == script("""
        add chain ip podlane external-source
        add rule ip podlane external-source ct original ip daddr . meta l4proto . ct original proto-dst vmap @external
    """)


def test_shrinking_takes_two_transactions_and_fills_the_hole():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    index = index_of(service("web", VIP), slice_of("web", ["10.5.1.3", "10.5.1.4"]))
    assert str(plan_all(tables, index)) == script("""
        add chain ip podlane lb2
        add rule ip podlane lb2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
        add rule ip podlane lb2 drop
        delete element ip podlane services { 10.96.0.1 . tcp . 80 }
        delete element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000000 }
        delete element ip podlane hairpin { 10.5.1.2 . 10.5.1.2 }
        add element ip podlane services { 10.96.0.1 . tcp . 80 : goto lb2 }
        add element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000000 : 10.5.1.4 . 8080 }
        # later
        delete element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000002 }
        # conntrack
        conntrack -D -p tcp --orig-dst 10.96.0.1 --dport 80 # stale
    """)


def test_replacing_a_target_is_one_element_in_one_transaction():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.2.3 node2"]))
    index = index_of(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.2.4 node2"]))
    assert str(plan_all(tables, index)) == script("""
        delete element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000001 }
        add element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000001 : 10.5.2.4 . 8080 }
        # conntrack
        conntrack -D -p tcp --orig-dst 10.96.0.1 --dport 80 # stale
    """)


def test_to_zero_the_slots_stay_for_those_on_their_way():
    tables = applied(service("web", VIP, "53/UDP"), slice_of("web", ["10.5.1.2"], "53/UDP"))
    plan = plan_all(tables, index_of(service("web", VIP, "53/UDP"), slice_of("web", [], "53/UDP")))
    assert str(plan) == script("""
        delete element ip podlane services { 10.96.0.1 . udp . 53 }
        delete element ip podlane hairpin { 10.5.1.2 . 10.5.1.2 }
        # later
        delete element ip podlane endpoints { 10.96.0.1 . udp . 53 . 0x00000000 }
        # conntrack
        conntrack -D -p udp --orig-dst 10.96.0.1 --dport 53 # stale
    """)
    assert plan.clean == {frontend(f"{VIP}:53/UDP")}


def test_with_affinity_the_last_slot_is_left_with_the_id_of_one_who_stays():
    web = service("web", VIP, affinity=60)
    tables = applied(web, slice_of("web", ["10.5.2.2 node2", "10.5.2.3 node2"]))
    staying = tables[PICKS][slot(0)]
    plan = plan_all(tables, index_of(web, slice_of("web", ["10.5.2.2 node2"])))
    before = copied(tables)
    tables.apply(plan.now)
    assert set(before[ADDRESSES]) - set(tables[ADDRESSES]) == {before[PICKS][slot(1)]}
    assert {tables[PICKS][slot(0)], tables[PICKS][slot(1)]} == {staying}
    assert plan.retire == [(PICKS, slot(1))]
    tables.apply(plan_retire(tables, plan.retire))
    assert set(tables[ADDRESSES]) == {staying}


def test_without_affinity_any_more_the_ids_go_with_the_slots():
    endpoints = slice_of("web", ["10.5.2.2 node2", "10.5.2.3 node2"])
    tables = applied(service("web", VIP, affinity=60), endpoints)
    plan = plan_all(tables, index_of(service("web", VIP), endpoints))
    tables.apply(plan.now)
    assert len(tables[ADDRESSES]) == 2
    assert not plan_all(tables, index_of(service("web", VIP), endpoints)).now
    tables.apply(plan_retire(tables, [(PICKS, slot(1))]))
    assert set(tables[ADDRESSES]) == {tables[PICKS][slot(0)]}
    tables.apply(plan_retire(tables, plan.retire))
    assert (tables[PICKS], tables[ADDRESSES]) == ({}, {})


def test_from_policy_local_to_cluster_nobody_is_sent_back_to_who_went():
    local = service("web", VIP, "80=30080", type="NodePort", external_traffic_policy="Local", affinity=60)
    tables = applied(local, slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    cluster = service("web", VIP, "80=30080", type="NodePort", affinity=60)
    index = index_of(cluster, slice_of("web", ["10.5.1.9"]))
    plan = plan_all(tables, index)
    before = copied(tables)
    tables.apply(plan.now)
    nobody_misses(before, tables)
    assert not plan_all(tables, index).now
    tables.apply(plan_retire(tables, plan.retire))
    assert meaning(tables) == meaning(settled(index))


def test_who_returns_gets_the_id_it_had():
    web, both = service("web", VIP, affinity=60), slice_of("web", ["10.5.2.2 node2", "10.5.2.3 node2"])
    tables = applied(web, both)
    ids = dict(tables[ADDRESSES])
    settled(index_of(web, slice_of("web", ["10.5.2.2 node2"])), tables=tables)
    assert len(tables[ADDRESSES]) == 1
    settled(index_of(web, both), tables=tables)
    assert tables[ADDRESSES] == ids


def test_an_unchanged_state_plans_nothing():
    objects = (service("web", VIP, "http:80", "x:81"), slice_of("web", ["10.5.1.2", "10.5.1.3"], "http:80"))
    assert not plan_all(applied(*objects), index_of(*objects))


def test_conntrack_is_cleaned_when_an_endpoint_went_and_when_a_service_begins_to_be_served():
    web = service("web", VIP)
    tables = applied(web, slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    assert not plan_all(tables, index_of(web, slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.2.4"]))).clean
    assert plan_all(tables, index_of(web, slice_of("web", ["10.5.1.2"]))).clean == {WEB}
    assert plan_all(applied(web), index_of(web, slice_of("web", ["10.5.1.2"]))).clean == {WEB}


def test_conntrack_is_left_alone_when_only_the_way_of_picking_changes():
    endpoints = slice_of("web", ["10.5.1.2", "10.5.1.3"])
    tables = applied(service("web", VIP), endpoints)
    for how in ({"affinity": 60}, {"balance": "maglev"}):
        plan = plan_all(tables, index_of(service("web", VIP, **how), endpoints))
        assert plan.now
        assert not plan.clean


def test_what_someone_else_put_there_goes():
    objects = (
        service("web", VIP, affinity=60, external_ips=("198.51.100.1",)),
        service("plain", "10.96.0.2"),
        slice_of("web", ["10.5.1.2"]),
        slice_of("plain", ["10.5.1.2"]),
    )
    tables, index = applied(*objects), index_of(*objects)
    clean = copied(tables)
    other, plain = frontend("10.96.9.9:80/SCTP"), frontend("10.96.0.2:80")
    tables[ENDPOINTS].update({slot(7, plain): D, slot(0, other): D, slot(0x80000003, plain): D, slot(3): D})
    tables[PICKS].update({slot(5): pack_mark(77), slot(0, plain): pack_mark(78)})
    tables[ADDRESSES][pack_mark(77)] = D
    tables[SERVICES].update({other: "goto lb1", frontend("10.96.9.8:80"): "accept"})
    tables[INSIDE][WEB] = "goto lb1"
    tables[EXTERNAL][WEB] = "goto masquerade-own"
    tables[REFUSED][WEB] = None
    tables[SOURCE_RANGES][WEB + pack_address("192.0.2.0") + WEB + pack_address("192.0.2.255")] = None
    tables[CLUSTER_IPS][pack_address("10.96.9.9")] = None
    tables[HAIRPIN][pack_address("10.5.1.2") + pack_address("10.5.1.3")] = None
    tables.apply(plan_all(tables, index).now)
    tables.apply(plan_retire(tables, plan_all(tables, index).retire))
    assert tables == clean
    assert not plan_all(tables, index)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_hole_made_by_hand_is_filled(missing):
    objects = (service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    tables = applied(*objects)
    del tables[ENDPOINTS][slot(missing)]
    assert list(plan_all(tables, index_of(*objects)).now.lines()) == [
        f"add element ip podlane endpoints {{ 10.96.0.1 . tcp . 80 . {missing:#010x} : 10.5.1.{missing + 2} . 8080 }}"
    ]


def test_a_hole_and_someone_else_after_it():
    objects = (service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    tables = applied(*objects)
    del tables[ENDPOINTS][slot(0)]
    tables[ENDPOINTS][slot(1)] = D
    assert settled(index_of(*objects), tables=tables) == applied(*objects)


def test_chains_nobody_goes_to_any_more():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    tables.chains |= {"lb12", "lb3", "outside-lb0", "hash1021-aff60"}
    assert unused_chains(tables) == ["hash1021-aff60", "lb12", "lb3", "outside-lb0"]


@pytest.mark.parametrize(
    ("old", "wanted", "slots"),
    [
        ([], [], []),
        ([None, None], [B, A], [A, B]),
        ([A, B], [A, B, C], [A, B, C]),
        ([A, B, C], [B, C], [C, B]),
        ([A, B, C, D], [D], [D]),
        ([A, A], [A, B], [A, B]),
        ([None, B], [A, B], [A, B]),
    ],
)
def test_slots(old, wanted, slots):
    assert assign_slots((old + [None] * len(wanted))[: len(wanted)], wanted) == slots


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([A, B, C, D])), max_size=6),
    st.sets(st.sampled_from([target(f"10.5.1.{i}:8080") for i in range(2, 12)]), max_size=8),
)
def test_slots_are_dense_and_who_stays_stays(old, wanted):
    before = (old + [None] * len(wanted))[: len(wanted)]
    slots = assign_slots(before, wanted)
    assert sorted(slots) == sorted(wanted)
    for each in wanted & set(before):
        assert slots[before.index(each)] == each


def test_without_the_second_transaction_someone_misses():
    # the same walk shows the fault that the second transaction is there for
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    plan = plan_all(tables, index_of(service("web", VIP), slice_of("web", ["10.5.1.2"])))
    after = copied(tables)
    after.apply(plan.now)
    between = Kernel(tables, SKELETON, later=copied(after))
    assert walk(Packet("10.5.1.9", VIP, 80), between, pick=1).action == "translate"
    after.apply(plan_retire(after, plan.retire))
    verdict = walk(Packet("10.5.1.9", VIP, 80), Kernel(tables, SKELETON, later=after), pick=1)
    assert verdict.steps[1:] == ("lb2: slot 1 is missing", "lb2: drop")
