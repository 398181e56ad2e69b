"""What the kernel refuses: one service is left out and told of, all others are served."""

from __future__ import annotations

import errno

import pytest
from proxyd_node import WEB, World
from proxyd_objects import VIP, frontend, service, slice_of

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from proxyd.tables import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINTS,
    EXTERNAL,
    HAIRPIN,
    PICKS,
    SERVICES,
    Refused,
    pack_address,
    pack_mark,
)
from proxyd.walk import consistent

pytestmark = pytest.mark.unit

COUNT = 12
NAMES = [f"s{i:02}" for i in range(COUNT)]


def at(number: int, port: int = 80) -> bytes:
    return frontend(f"10.96.0.{number + 1}:{port}")


def many(*, affinity: int = 0):
    return [service(name, f"10.96.0.{i + 1}", affinity=affinity) for i, name in enumerate(NAMES)] + [
        slice_of(name, [f"10.5.1.{i + 2}", f"10.5.2.{i + 2} node2"]) for i, name in enumerate(NAMES)
    ]


def left_out() -> float | None:
    return metrics.value("podlane_proxyd_left_out")


@pytest.fixture(params=[True, False], ids=["named", "unnamed"])
def world(request):
    world = World()
    world.nft.named = request.param
    return world


def all_but(world: World, *missing: int) -> None:
    """Every service but those is served whole, and the table goes together."""
    for number in range(COUNT):
        wanted = set() if number in missing else {f"10.5.1.{number + 2}", f"10.5.2.{number + 2}"}
        assert world.served(at(number)) == wanted, NAMES[number]
    assert consistent(world.nft.tables) == []


ELEMENTS = [
    pytest.param(SERVICES, at(4), id="verdict"),
    pytest.param(ENDPOINTS, at(4) + pack_mark(1), id="slot"),
]


@pytest.mark.parametrize(("name", "key"), ELEMENTS)
def test_one_service_is_left_out_and_told_of(world, name, key):
    world.nft.refuse(name, key)
    world.sync(*many())
    all_but(world, 4)
    assert [service for service, _ in world.told] == ["s04"]
    assert "node node1 cannot serve 10.96.0.5:80/tcp: commit" in world.told[0][1]
    assert "invalid argument" in world.told[0][1]
    assert list(world.proxy.status()["leftOut"]) == ["10.96.0.5:80/tcp"]
    assert left_out() == 1
    world.proxy.verify()
    assert world.proxy.not_ready() is None


@pytest.mark.parametrize(("name", "key"), ELEMENTS)
def test_it_is_served_again_when_it_changes_and_the_kernel_takes_it(world, name, key):
    world.nft.refuse(name, key)
    world.sync(*many())
    world.nft._impossible.clear()
    world.proxy.sync()
    all_but(world, 4)  # nothing has changed
    world.sync(service("s04", "10.96.0.5", labels={"touched": "yes"}))
    all_but(world)
    assert world.proxy.status()["leftOut"] == {}
    assert left_out() == 0
    assert len(world.told) == 1


def test_it_is_served_again_when_its_endpoints_change(world):
    world.nft.refuse(ENDPOINTS, at(4) + pack_mark(1))
    world.sync(*many())
    world.sync(slice_of("s04", ["10.5.1.6"]))
    assert world.served(at(4)) == {"10.5.1.6"}
    assert left_out() == 0


def test_a_service_that_is_still_refused_is_told_of_again_when_it_changes(world):
    world.nft.refuse(SERVICES, at(4))
    world.sync(*many())
    world.sync(slice_of("s04", ["10.5.1.6"]))
    all_but(world, 4)
    assert [service for service, _ in world.told] == ["s04", "s04"]


def test_a_left_out_service_that_is_deleted_is_forgotten(world):
    world.nft.refuse(SERVICES, at(4))
    world.sync(*many())
    world.source.drop(world.source.services["default/s04"])
    world.proxy.sync()
    assert world.proxy.status()["leftOut"] == {}
    assert left_out() == 0
    all_but(world, 4)


def test_a_change_of_one_that_is_served_may_be_refused(world):
    world.sync(*many())
    world.nft.refuse(ENDPOINTS, at(4) + pack_mark(2))
    world.sync(slice_of("s04", ["10.5.1.6", "10.5.1.7", "10.5.1.8"]), slice_of("s05", ["10.5.1.7"]))
    assert world.served(at(4)) == set()
    assert world.served(at(5)) == {"10.5.1.7"}
    assert left_out() == 1


def test_only_the_refused_port_of_a_service_is_left_out(world):
    world.nft.refuse(SERVICES, at(0, 81))
    world.sync(service("s00", "10.96.0.1", "x:80", "y:81"), slice_of("s00", ["10.5.1.2"], "x:8080", "y:8081"))
    assert world.served(at(0)) == {"10.5.1.2"}
    assert world.served(at(0, 81)) == set()


def test_a_refused_id_leaves_out_the_service_whose_client_would_get_it(world):
    spare = World()
    spare.sync(*many(affinity=60))
    number = spare.nft.tables[PICKS][at(4) + pack_mark(0)]
    world.nft.refuse(ADDRESSES, number)
    world.sync(*many(affinity=60))
    all_but(world, 4)
    assert [service for service, _ in world.told] == ["s04"]


def test_a_refused_external_frontend_leaves_the_cluster_ip_served(world):
    outside = frontend("198.51.100.1:80")
    world.nft.refuse(EXTERNAL, outside)
    world.sync(service("web", VIP, external_ips=("198.51.100.1",)), slice_of("web", ["10.5.1.2"]))
    assert world.served() == {"10.5.1.2"}
    assert world.served(outside) == set()
    assert [service for service, _ in world.told] == ["web"]


@pytest.mark.parametrize(
    ("name", "address", "owner"), [(CLUSTER_IPS, "10.96.0.5", "s04"), (HAIRPIN, "10.5.1.6", "s04")]
)
def test_a_refused_member_of_a_set_is_left_out_and_its_service_told_of(world, name, address, owner):
    packed = pack_address(address)
    world.nft.refuse(name, packed * (2 if name == HAIRPIN else 1))
    world.sync(*many())
    for number in range(COUNT):
        assert world.served(at(number)) == {f"10.5.1.{number + 2}", f"10.5.2.{number + 2}"}
    assert len(world.nft.tables[name]) == COUNT - 1
    assert [service for service, _ in world.told] == [owner]
    assert list(world.proxy.status()["leftOut"]) == [address]
    assert left_out() == 1
    world.nft._impossible.clear()
    world.sync(service("s04", "10.96.0.5", labels={"touched": "yes"}))
    assert len(world.nft.tables[name]) == COUNT
    assert left_out() == 0


def test_many_refused_at_once(world):
    refused = list(range(0, COUNT, 2))
    for number in refused:
        world.nft.refuse(SERVICES, at(number))
    world.sync(*many())
    all_but(world, *refused)
    assert sorted(service for service, _ in world.told) == [NAMES[number] for number in refused]
    assert left_out() == len(refused)


def test_more_refused_than_the_kernel_is_asked_about_one_by_one():
    world = World()
    count = 40
    for number in range(count):
        world.nft.refuse(SERVICES, at(number))
    world.sync(
        *(service(f"s{i}", f"10.96.0.{i + 1}") for i in range(count + 1)),
        *(slice_of(f"s{i}", ["10.5.1.2"]) for i in range(count + 1)),
    )
    assert world.served(at(count)) == {"10.5.1.2"}
    assert left_out() == count


def test_a_map_that_is_full_leaves_out_those_it_has_no_room_for():
    """ENFILE names nobody: as many are served as there is room for."""
    world = World()
    world.sync(*many())
    world.nft.skeletons = {
        family: type(each)(each.pod_networks, each.service_ranges, size=2 * COUNT + 1, family=family)
        for family, each in world.nft.skeletons.items()
    }
    world.sync(service("web", "10.96.0.99"), slice_of("web", ["10.5.1.2", "10.5.1.3"]), slice_of("s03", ["10.5.1.9"]))
    assert world.served(at(3)) == {"10.5.1.9"}
    assert [service for service, _ in world.told] == ["web"]
    assert world.served(at(2)) == {"10.5.1.4", "10.5.2.4"}


def test_a_refused_chain_leaves_out_those_that_need_it():
    """A chain has no element to blame: halving finds the frontends."""
    world = World()
    world.sync(*many())
    commit = world.nft.commit

    def refuse_chain(transaction):
        if "lb3" in transaction.chains:
            raise Refused("commit", errno.EOPNOTSUPP)
        commit(transaction)

    world.nft.commit = refuse_chain
    world.sync(slice_of("s04", ["10.5.1.6", "10.5.1.7", "10.5.1.8"]), slice_of("s05", ["10.5.1.7"]))
    assert world.served(at(4)) == set()
    assert world.served(at(5)) == {"10.5.1.7"}
    assert [service for service, _ in world.told] == ["s04"]


def test_an_error_that_passes_while_narrowing_down_blames_nobody():
    world = World()
    world.nft.named = False
    world.nft.refuse(SERVICES, at(4))
    world.nft.fail_next(Refused("commit", errno.EINVAL), Refused("commit", errno.ENOMEM))
    with pytest.raises(Refused):
        world.sync(*many())
    assert world.told == []
    world.proxy.sync()
    all_but(world, 4)


def test_a_refused_transaction_that_adds_nothing_is_an_error():
    world = World()
    world.sync(*many())
    world.nft.fail_next(*[Refused("commit", errno.EPERM)] * 40)
    for each in world.source.slices.copy().values():
        world.source.drop(each)
    with pytest.raises(PodlaneError):
        world.proxy.sync()
    world.nft._failures.clear()
    world.proxy.sync()
    assert world.served(at(1)) == set()
    assert world.told == []
    assert WEB not in world.nft.tables[SERVICES]
