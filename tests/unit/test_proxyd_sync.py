"""The sync over the fake kernel: named states in, transactions out, faults in between."""

from __future__ import annotations

import pytest
from proxyd_node import DNS, World, slot
from proxyd_objects import (
    NODE_ADDRESS,
    POD_NETWORK,
    POD_NETWORK6,
    SERVICE_RANGE,
    SERVICE_RANGE6,
    SKELETON,
    SKELETON6,
    VIP,
    VIP6,
    frontend,
    service,
    shown,
    slice_of,
    target,
)

from podlane.errors import PodlaneError
from podlane.runtime.runner import NotReady
from proxyd.plane import RETIRE_AFTER
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, IPV4, IPV6, SERVICES, Refused, pack_address
from proxyd.walk import consistent

pytestmark = pytest.mark.unit


@pytest.fixture
def world():
    return World()


@pytest.fixture
def dual():
    return World.dual()


def test_nothing_is_touched_before_the_first_complete_list(world):
    world.source.ready = False
    with pytest.raises(NotReady):
        world.proxy.sync()
    assert (world.nft.loads, world.nft.commits, world.host.calls, world.acknowledged) == (0, [], [], [])
    assert world.proxy.not_ready() is not None
    world.source.ready = True
    world.proxy.sync()
    assert world.nft.skeletons == {IPV4: SKELETON}


def test_ready_means_written_and_found_right(world):
    with pytest.raises(NotReady):
        world.proxy.verify()  # nothing to compare yet
    assert world.proxy.not_ready() is not None
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    assert world.proxy.not_ready() is not None
    world.proxy.verify()
    assert world.proxy.not_ready() is None


def test_not_ready_when_what_was_written_is_not_there(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.nft.meddle(lambda tables: tables[SERVICES].clear())
    with pytest.raises(NotReady):
        world.proxy.verify()
    world.proxy.sync()
    world.proxy.verify()
    assert world.proxy.not_ready() is None


def test_a_change_writes_only_what_changed(world):
    world.sync(
        *(service(f"s{i}", f"10.96.0.{i}") for i in range(1, 40)),
        *(slice_of(f"s{i}", ["10.5.1.2", "10.5.1.3"]) for i in range(1, 40)),
    )
    world.committed()
    loads = world.nft.loads
    world.sync(slice_of("s7", ["10.5.1.2", "10.5.1.9 node2"]))
    assert world.committed() == [
        "delete endpoints { 10.96.0.7 . tcp . 80 . 0x00000001 }",
        "add endpoints { 10.96.0.7 . tcp . 80 . 0x00000001 : 10.5.1.9 . 8080 }",
    ]
    assert world.nft.loads == loads


def test_slots_are_retired_by_a_later_sync(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    assert slot(2) in world.nft.tables[ENDPOINTS]
    assert RETIRE_AFTER in world.triggers
    world.committed()
    world.proxy.sync()  # something else happened: too early for the slots
    assert world.committed() == []
    world.settle()
    assert world.committed() == [
        "delete endpoints { 10.96.0.1 . tcp . 80 . 0x00000001 }",
        "delete endpoints { 10.96.0.1 . tcp . 80 . 0x00000002 }",
    ]


def test_a_slot_in_use_again_is_not_retired(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.sync(slice_of("web", ["10.5.1.2", "10.5.1.7"]))
    world.settle()
    assert world.served() == {"10.5.1.2", "10.5.1.7"}
    assert slot(2) not in world.nft.tables[ENDPOINTS]


def test_a_slot_that_was_in_use_again_is_retired_its_whole_time_after_that(world):
    both, one = slice_of("web", ["10.5.1.2", "10.5.1.3"]), slice_of("web", ["10.5.1.2"])
    world.sync(service("web", VIP), both)
    world.sync(one)
    world.sync(both)
    world.clock.advance(RETIRE_AFTER)
    world.sync(one)
    assert slot(1) in world.nft.tables[ENDPOINTS]
    world.settle()
    assert slot(1) not in world.nft.tables[ENDPOINTS]


def test_slots_that_somebody_else_deleted_meanwhile_are_no_lasting_error(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.nft.meddle(lambda tables: tables[ENDPOINTS].pop(slot(1)))
    with pytest.raises(Refused):
        world.settle()
    world.proxy.sync()
    assert world.served() == {"10.5.1.2"}


def test_a_restart_writes_nothing_when_nothing_changed(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.committed()
    world.start()
    world.proxy.sync()
    assert world.committed() == []
    world.proxy.verify()
    assert world.proxy.not_ready() is None


def test_a_restart_writes_nothing_where_there_is_no_service(world):
    world.sync()
    world.committed()
    world.start()
    world.proxy.sync()
    assert world.committed() == []


def test_chains_left_in_an_otherwise_empty_table_go(world):
    world.sync()
    world.nft.meddle(lambda tables: tables.chains.update({"lb7", "hash1021"}))
    world.start()
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    assert world.nft.tables.chains == {"external-source", "lb1"}


def test_the_first_sync_of_thousands_is_written_in_parts_that_each_go_together(world):
    seen = []

    def look(transaction):
        assert consistent(world.nft.tables) == []
        seen.append(len(transaction))

    world.nft.after_commit = look
    names = {f"s{i}": f"10.96.{i >> 8}.{i & 255}" for i in range(6000)}
    world.sync(*(service(*each) for each in names.items()), *(slice_of(name, ["10.5.1.2"]) for name in names))
    assert len(seen) > 2
    assert len(world.nft.tables[SERVICES]) == len(world.nft.tables[ENDPOINTS]) == 6000
    commits = len(world.nft.commits)
    world.start()
    world.proxy.sync()
    assert len(world.nft.commits) == commits


def test_a_restart_after_a_kill_between_the_two_transactions(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.3"]))
    world.start()
    world.proxy.sync()
    world.settle()
    assert world.served() == {"10.5.1.3"}
    assert len(world.nft.tables[ENDPOINTS]) == 1


def test_what_happened_while_it_was_away_is_made_up_for(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]), service("old", "10.96.0.9"))
    world.source.drop(world.source.services["default/old"])
    world.source.put(slice_of("web", ["10.5.1.3", "10.5.1.4"]))
    world.committed()
    world.start()
    world.proxy.sync()
    assert world.served() == {"10.5.1.3", "10.5.1.4"}
    assert pack_address("10.96.0.9") not in world.nft.tables[CLUSTER_IPS]
    # .3 has kept its slot
    assert world.nft.tables[ENDPOINTS][slot(1)] == target("10.5.1.3:8080")


# --- families, networks, place -------------------------------------------------------------


def test_another_pod_network_loads_the_static_part_again(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.committed()
    world.source.pod_networks = ("10.6.0.0/16",)
    world.proxy.sync()
    assert world.nft.skeletons[IPV4].pod_networks == ("10.6.0.0/16",)
    assert world.committed() == []


def test_a_second_family_gets_a_table_of_its_own_and_loses_it(world):
    web = service("web", (VIP, VIP6))
    world.sync(web, slice_of("web", ["10.5.1.2"]), slice_of("web", ["fd00:5::2"], suffix="6"))
    assert set(world.nft.kernel) == {IPV4}
    world.source.pod_networks, world.source.service_ranges = (
        (POD_NETWORK6, POD_NETWORK),
        (SERVICE_RANGE, SERVICE_RANGE6),
    )
    world.committed()
    world.proxy.sync()
    assert world.nft.skeletons == {IPV4: SKELETON, IPV6: SKELETON6}
    assert world.served(frontend(f"[{VIP6}]:80"), IPV6) == {"fd00:5::2"}
    assert not [line for line in world.committed() if "10.5.1.2" in line]
    assert world.host.calls[-1] == ((SERVICE_RANGE, SERVICE_RANGE6), True)
    world.source.pod_networks, world.source.service_ranges = (POD_NETWORK,), (SERVICE_RANGE,)
    world.proxy.sync()
    assert set(world.nft.kernel) == {IPV4}
    assert world.served() == {"10.5.1.2"}


def test_node_ports_follow_the_nodes_addresses(world):
    world.sync(service("web", VIP, "80=30080", type="NodePort"), slice_of("web", ["10.5.1.2"]))
    here, there = frontend(f"{NODE_ADDRESS}:30080"), frontend("192.168.64.12:30080")
    assert (world.served(here), world.served(there)) == ({"10.5.1.2"}, set())
    world.source.internal_ips = ("192.168.64.12",)
    world.proxy.sync()
    assert (world.served(here), world.served(there)) == (set(), {"10.5.1.2"})


def test_hints_follow_the_nodes_zone(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2 @zone1", "10.5.2.2 node2 @zone2"]))
    assert world.served() == {"10.5.1.2"}
    world.source.zone = "zone2"
    world.proxy.sync()
    assert world.served() == {"10.5.2.2"}


# --- what others are told ---------------------------------------------------------------


def test_stale_entries_are_cleaned_after_the_commit_and_retried(world):
    world.sync(service("dns", VIP, "53/UDP"), slice_of("dns", ["10.5.1.2", "10.5.1.3"], "53/UDP"))
    assert world.conntrack.calls == [({"10.96.0.1:53/udp": {"10.5.1.2:53", "10.5.1.3:53"}}, ("10.96.0.0/16",))]
    world.conntrack.calls.clear()
    world.conntrack.fail = True
    with pytest.raises(PodlaneError):
        world.sync(slice_of("dns", ["10.5.1.3"], "53/UDP"))
    assert world.served(DNS) == {"10.5.1.3"}
    world.conntrack.fail = False
    world.proxy.sync()
    world.proxy.sync()
    assert world.conntrack.calls == [({"10.96.0.1:53/udp": {"10.5.1.3:53"}}, ())]


def test_a_revision_is_acknowledged_once_it_is_in_the_kernel(world):
    before: list[int] = []
    world.nft.after_commit = lambda _: before.append(len(world.acknowledged))
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3 ending"]))
    assert world.acknowledged == [(2, True), (3, False), (4, True)]
    assert list(dict.fromkeys(before)) == [0, 1, 2]
    assert before == sorted(before)


def test_a_revision_is_not_acknowledged_when_the_kernel_did_not_take_it(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.nft.fail_next(PodlaneError("wait for netlink answer: deadline passed"))
    with pytest.raises(PodlaneError):
        world.sync(slice_of("web", ["10.5.1.3"]))
    assert world.acknowledged == [(2, True)]
    world.proxy.sync()
    assert [revision for revision, _ in world.acknowledged] == [2, 3]


def test_health_checks_are_told_how_many_endpoints_are_here(world):
    balanced = service(
        "web",
        VIP,
        "80=30080",
        type="LoadBalancer",
        external_traffic_policy="Local",
        health_check_node_port=31000,
        ingress=["203.0.113.1"],
    )
    world.sync(balanced, slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.2.2 node2", "10.5.1.4 ending"]))
    assert {port: (each.name, each.local_endpoints) for port, each in world.health.items()} == {31000: ("web", 2)}


def test_a_clash_is_told_of_once_and_the_lower_name_served(world):
    world.sync(service("b", VIP), slice_of("b", ["10.5.1.9"]))
    world.sync(service("a", VIP), slice_of("a", ["10.5.1.2"]))
    assert world.served() == {"10.5.1.2"}
    assert world.proxy.status()["clashes"] == ["serve default/b: 10.96.0.1:80/tcp already belongs to service default/a"]
    world.source.drop(world.source.services["default/a"])
    world.proxy.sync()
    assert world.served() == {"10.5.1.9"}
    assert world.proxy.status()["clashes"] == []


def test_the_status_says_where_it_stands_and_what_is_there(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    status = world.proxy.status()
    assert (status["node"], status["zone"], status["services"]) == ("node1", "zone1", 1)
    assert status["nodePortAddresses"] == [NODE_ADDRESS, "fd00:64::11"]
    four = status["families"]["IPv4"]
    assert (four["podNetworks"], four["chains"]) == ([POD_NETWORK], 2)
    assert {name: count for name, count in four["elements"].items() if count} == {
        "services": 1,
        "endpoints": 1,
        "cluster_ips": 1,
        "hairpin": 1,
    }
    assert shown([world.nft.tables[ENDPOINTS][slot(0)]]) == ["10.5.1.2:8080"]


def test_connections_that_end_after_their_pod_went_are_looked_at_again(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.settle()
    world.clock.advance(60)
    world.proxy.sync()
    world.conntrack.calls.clear()
    world.sync(slice_of("web", ["10.5.1.3"]))
    expected = ({"10.96.0.1:80/tcp": {"10.5.1.3:8080"}}, ())
    for pause in (0.0, 3.0, 17.0):
        world.clock.advance(pause)
        world.proxy.sync()
        assert world.conntrack.calls == [expected], pause
        world.conntrack.calls.clear()
    world.clock.advance(60)
    world.proxy.sync()
    assert world.conntrack.calls == []
