"""Plans read as nft scripts; and whatever happens between two transactions, nobody misses."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyd_objects import POD_NETWORK, SERVICE_RANGE, service, slice_of

from proxyd.desired import Index
from proxyd.plan import assign_slots, plan_all, plan_changes, plan_retire, unused_chains
from proxyd.ruleset import Skeleton
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, HAIRPIN, SERVICES, Frontend, Refused, Tables, Target, Transaction
from proxyd.walk import Packet, choices, consistent, every_outcome, walk

pytestmark = pytest.mark.unit

VIP = "10.96.0.1"
A, B, C, D = (Target(f"10.5.1.{i}", 8080) for i in (2, 3, 4, 5))
SKELETON = Skeleton((POD_NETWORK,), (SERVICE_RANGE,))


def index_of(*objects):
    index = Index("node1")
    services = {f"default/{o.metadata.name}": o for o in objects if o.KIND == "Service"}
    slices = {f"default/{o.metadata.name}": o for o in objects if o.KIND == "EndpointSlice"}
    index.replace(services, slices)
    return index


def applied(*objects):
    """The kernel after a complete first sync of these objects."""
    tables = Tables()
    tables.apply(plan_all(tables, index_of(*objects)).now)
    return tables


def script(text):
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_first_sync():
    index = index_of(
        service("web", VIP, "http:80", "dns:53/UDP"), slice_of("web", ["10.5.1.2"], "http:8080", "dns:53/UDP")
    )
    assert str(plan_all(Tables(), index)) == script("""
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
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.2.3"], nodes={"10.5.2.3": "node2"}))
    index = index_of(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.2.4"], nodes={"10.5.2.4": "node2"}))
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
    assert plan.clean == {Frontend(VIP, "UDP", 53): frozenset()}


def test_an_unchanged_state_plans_nothing():
    objects = (service("web", VIP, "http:80", "x:81"), slice_of("web", ["10.5.1.2", "10.5.1.3"], "http:80"))
    assert not plan_all(applied(*objects), index_of(*objects))


def test_conntrack_is_cleaned_when_an_endpoint_went_and_when_a_service_begins_to_be_served():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    grown = slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.2.4"])
    assert not plan_all(tables, index_of(service("web", VIP), grown)).clean
    assert plan_all(tables, index_of(service("web", VIP), slice_of("web", ["10.5.1.2"]))).clean == {
        Frontend(VIP, "TCP", 80): {A}
    }
    fresh = applied(service("web", VIP))
    assert plan_all(fresh, index_of(service("web", VIP), slice_of("web", ["10.5.1.2"]))).clean == {
        Frontend(VIP, "TCP", 80): {A}
    }


def test_what_someone_else_put_there_goes():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    tables[ENDPOINTS][VIP, "TCP", 80, 7] = D
    tables[ENDPOINTS]["10.96.9.9", "132", 80, 0] = D
    tables[SERVICES][Frontend("10.96.9.9", "TCP", 80)] = "lb1"
    tables[SERVICES][Frontend("10.96.9.8", "TCP", 80)] = ""  # a verdict that is no goto
    tables[CLUSTER_IPS]["10.96.9.9",] = None
    tables[HAIRPIN]["10.5.1.2", "10.5.1.3"] = None
    index = index_of(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    plan = plan_all(tables, index)
    tables.apply(plan.now)
    tables.apply(plan_retire(tables, plan.retire))
    assert tables == applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))


def test_a_hole_made_by_hand_is_filled():
    objects = (service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    tables = applied(*objects)
    del tables[ENDPOINTS][VIP, "TCP", 80, 1]
    plan = plan_all(tables, index_of(*objects))
    assert str(plan) == ("add element ip podlane endpoints { 10.96.0.1 . tcp . 80 . 0x00000001 : 10.5.1.3 . 8080 }")


def test_chains_nobody_goes_to_any_more():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    tables.chains |= {"lb12", "lb3"}
    assert unused_chains(tables) == ["lb3", "lb12"]


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


@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from([A, B, C, D])), max_size=6),
    st.sets(st.builds(Target, st.sampled_from([f"10.5.1.{i}" for i in range(2, 12)]), st.just(8080)), max_size=8),
)
def test_slots_are_dense_and_who_stays_stays(old, wanted):
    before = (old + [None] * len(wanted))[: len(wanted)]
    slots = assign_slots(before, wanted)
    assert sorted(slots) == sorted(wanted)
    for target in wanted & set(before):
        assert slots[before.index(target)] == target


pods = st.lists(st.sampled_from([f"10.5.1.{i}" for i in range(2, 9)]), unique=True, max_size=6)
states = st.tuples(pods, pods).map(
    lambda p: (
        service("a", VIP, "x:80", "y:53/UDP"),
        slice_of("a", p[0], "x:8080", "y:53/UDP"),
        service("b", "10.96.0.2"),
        slice_of("b", p[1]),
    )
)
PACKETS = [Packet("10.5.1.2", VIP, 80), Packet("10.5.9.9", VIP, 53, "UDP"), Packet("192.0.2.1", "10.96.0.2", 80)]


def nobody_misses(before: Tables, after: Tables) -> None:
    """A packet between whose look-ups the commit fell finds a slot, whichever it picks."""
    for packet in PACKETS:
        for pick in range(choices(before, packet)):
            assert walk(packet, before, SKELETON, pick=pick, committed=after).action == "translate"


@settings(max_examples=200, deadline=None)
@given(st.lists(states, min_size=2, max_size=5), st.data())
def test_no_commit_makes_anyone_miss_and_every_interruption_converges(sequence, data):
    tables, index = Tables(), Index("node1")
    retired: list = []
    for objects in sequence:
        incremental = data.draw(st.booleans(), label="incremental")
        touched = index.replace(
            {f"default/{o.metadata.name}": o for o in objects if o.KIND == "Service"},
            {f"default/{o.metadata.name}": o for o in objects if o.KIND == "EndpointSlice"},
        )
        plan = plan_changes(tables, index, touched) if incremental else plan_all(tables, index)
        before = copy.deepcopy(tables)
        tables.apply(plan.now)
        nobody_misses(before, tables)
        assert consistent(tables) == []
        assert not plan_all(tables, index).now
        retired += plan.retire
        if data.draw(st.booleans(), label="killed before the later transaction"):
            retired = plan_all(tables, index).retire  # what a new process finds
        if data.draw(st.booleans(), label="later transaction"):
            before = copy.deepcopy(tables)
            tables.apply(plan_retire(tables, retired))
            nobody_misses(before, tables)
            retired = []
    tables.apply(plan_retire(tables, retired))
    assert not plan_all(tables, index)
    for packet in PACKETS:
        wanted = index.targets(Frontend(packet.destination, packet.protocol, packet.port))
        assert {v.target for v in every_outcome(packet, tables, SKELETON)} - {None} == wanted


def test_without_the_second_transaction_someone_misses():
    # the same walk shows the fault that the second transaction is there for
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    plan = plan_all(tables, index_of(service("web", VIP), slice_of("web", ["10.5.1.2"])))
    after = copy.deepcopy(tables)
    after.apply(plan.now)
    after.apply(plan_retire(after, plan.retire))
    verdict = walk(Packet("10.5.1.9", VIP, 80), tables, SKELETON, pick=1, committed=after)
    assert verdict.steps[1:] == ("lb2: slot 1 is missing", "lb2: drop")


def test_the_walk_says_why():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    assert [
        (v.action, v.masquerade)
        for v in (
            walk(Packet("10.5.2.9", VIP, 80), tables, SKELETON),
            walk(Packet("192.0.2.1", VIP, 80), tables, SKELETON),
            walk(Packet("10.5.1.2", VIP, 80), tables, SKELETON),
            walk(Packet("10.5.1.2", VIP, 81), tables, SKELETON),
            walk(Packet("10.5.1.2", VIP, 80, "UDP"), tables, SKELETON),
            walk(Packet("10.5.1.2", "10.96.7.7", 80), tables, SKELETON),
            walk(Packet("10.5.1.2", "192.0.2.7", 80), tables, SKELETON),
        )
    ] == [
        ("translate", False),
        ("translate", True),
        ("translate", True),
        ("reset", False),
        ("unreachable", False),
        ("drop", False),
        ("pass", False),
    ]


def test_tables_refuse_what_the_kernel_refuses_and_stay_as_they_were():
    tables = applied(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    before = copy.deepcopy(tables)
    frontend = Frontend(VIP, "TCP", 80)

    def refused(change):
        transaction = Transaction()
        change(transaction)
        with pytest.raises(Refused) as caught:
            tables.apply(transaction)
        assert tables == before
        return str(caught.value)

    assert refused(lambda t: t.put(ENDPOINTS, (*frontend, 0), B, replaces=False)) == (
        "add endpoints 10.96.0.1 . tcp . 80 . 0x00000000 : 10.5.1.3 . 8080: file exists"
    )
    assert refused(lambda t: t.delete[SERVICES].append(Frontend(VIP, "TCP", 81))) == (
        "delete services 10.96.0.1 . tcp . 81: no such file or directory"
    )
    assert refused(lambda t: t.put(SERVICES, Frontend(VIP, "TCP", 81), "lb9", replaces=False)) == (
        "add services 10.96.0.1 . tcp . 81 : goto lb9: no such file or directory"
    )
    assert refused(lambda t: t.drop_chains.append("lb1")) == "delete chain lb1: device or resource busy"
