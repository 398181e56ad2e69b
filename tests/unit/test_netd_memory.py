"""What is remembered of a kernel, and what makes it doubtful. Notifications are written as requests are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from netd import plan as p
from netd import rtnetlink as rt
from netd.held import Asked, Held
from netd.memory import Event, Memory
from netd.model import Actual, FdbEntry, Neighbour, Route
from netd.rtlink import Link, Vxlan
from podlane.runtime.netlink import Message

pytestmark = pytest.mark.unit

DEVICE, INDEX = "flannel.1", 7
MAC = "02:00:00:00:00:02"
NET = IPv4Network("10.5.2.0/24")
VTEP = NET.network_address
ROUTE = Route(VTEP, DEVICE, onlink=True)
ASKED = Asked(frozenset({DEVICE}), (IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48")))
INDEXES = {DEVICE: INDEX}


def look() -> Held:
    """A kernel with one peer."""
    vxlan = Vxlan(1, 8472, IPv4Address("192.168.64.11"), 0, learning=False, gbp=False)
    return Held(
        ASKED,
        links={INDEX: Link(INDEX, DEVICE, 1, 1450, "02:00:00:00:00:01", "vxlan", vxlan)},
        neighbours={(DEVICE, VTEP): Neighbour(MAC)},
        fdb={(DEVICE, MAC): FdbEntry(IPv4Address("192.168.64.12"))},
        routes={NET: ROUTE},
    )


def event(message: Message) -> Event:
    return message.type, message.body


AGAIN = event(rt.replace_fdb(INDEX, MAC, FdbEntry(IPv4Address("192.168.64.12"))))
OTHER = event(rt.replace_fdb(INDEX, MAC, FdbEntry(IPv4Address("192.168.64.99"))))
ELSEWHERE = event(rt.replace_fdb(99, MAC, FdbEntry(IPv4Address("192.168.64.99"))))


@dataclass
class World:
    memory: Memory = field(default_factory=Memory)
    calls: list[None] = field(default_factory=list)

    def learn(self, how: Callable[[], Held] = look) -> Actual:
        return self.memory.learn(lambda _: how(), {})

    def recall(self) -> Actual | None:
        return self.memory.recall(ASKED, {})

    def hears(self, *events: Event) -> Held:
        """A dump during which this is heard."""
        assert not self.memory.heard(events)
        return look()


@pytest.fixture
def world() -> Iterator[World]:
    one = World()
    with one.memory.listening(lambda: (), lambda: one.calls.append(None)):
        yield one


def test_what_was_learned_is_recalled_for_the_same_question_only(world: World) -> None:
    learned = world.learn()
    assert world.recall() == learned
    assert world.memory.recall(Asked(frozenset({DEVICE, "flannel.2"}), ASKED.networks), {}) is None
    assert world.memory.recall(Asked(ASKED.devices, ASKED.networks[:1]), {}) is None


def test_what_was_recalled_is_a_copy(world: World) -> None:
    learned = world.learn()
    world.memory.expect([p.DeleteRoute(NET, ROUTE), p.DeleteNeighbour(DEVICE, VTEP)], INDEXES)
    assert learned.routes == {NET: ROUTE}
    recalled = world.recall()
    assert recalled is not None
    assert (recalled.routes, recalled.neighbours) == ({}, {})


def test_nothing_is_recalled_unless_somebody_listens() -> None:
    world = World()
    world.learn()
    assert world.recall() is None
    with world.memory.listening(lambda: (), lambda: None):
        assert world.recall() is None
        world.learn()
        assert world.recall() is not None
    assert world.recall() is None


def test_what_is_held_or_concerns_nobody_is_no_news(world: World) -> None:
    world.learn()
    assert not world.memory.heard([AGAIN])
    assert not world.memory.heard([ELSEWHERE])
    assert world.recall() is not None


@pytest.mark.parametrize(
    "heard",
    [
        OTHER,
        event(rt.delete_fdb(INDEX, MAC, FdbEntry(IPv4Address("192.168.64.12")))),
        event(rt.replace_neighbour(INDEX, VTEP, Neighbour(MAC, 0))),
        event(rt.delete_neighbour(INDEX, VTEP)),
        event(rt.replace_route(NET, Route(IPv4Address("192.168.64.9"), "eth0", onlink=False, protocol=3), 2)),
        event(rt.delete_route(NET, ROUTE, INDEX)),
        event(rt.replace_blackhole(IPv6Network("fd00:5:0:1::/64"))),
        event(rt.replace_neighbour(INDEX, IPv6Address("fd00:5::"), Neighbour(MAC))),
    ],
)
def test_a_contradiction_is_news_and_ends_the_trust(world: World, heard: Event) -> None:
    world.learn()
    assert world.memory.heard([AGAIN, heard])
    assert world.recall() is None
    world.learn()
    assert world.recall() is not None


def test_what_was_expected_comes_back_unnoticed(world: World) -> None:
    world.learn()
    steps: list[p.EntryStep] = [
        p.SetFdb(DEVICE, MAC, FdbEntry(IPv4Address("192.168.64.99"))),
        p.SetRoute(IPv4Network("10.5.3.0/24"), Route(IPv4Address("10.5.3.0"), DEVICE, onlink=True)),
        p.AddBlackhole(IPv4Network("10.5.1.0/24")),
        p.DeleteNeighbour(DEVICE, VTEP),
    ]
    world.memory.expect(steps, INDEXES)
    assert not world.memory.heard([OTHER, event(rt.delete_neighbour(INDEX, VTEP))])
    assert not world.memory.heard([event(rt.replace_blackhole(IPv4Network("10.5.1.0/24")))])
    assert world.recall() is not None
    assert world.memory.heard([AGAIN]), "somebody put it back"


def test_the_mark_of_an_entry_somebody_else_made_stays_theirs(world: World) -> None:
    def theirs() -> Held:
        held = look()
        held.fdb[DEVICE, MAC] = FdbEntry(IPv4Address("192.168.64.12"), ours=False)
        return held

    world.learn(theirs)
    world.memory.expect([p.SetFdb(DEVICE, MAC, FdbEntry(IPv4Address("192.168.64.99")))], INDEXES)
    recalled = world.recall()
    assert recalled is not None
    assert recalled.fdb == {(DEVICE, MAC): FdbEntry(IPv4Address("192.168.64.99"), ours=False)}


def test_what_agrees_with_a_dump_under_way_is_no_news(world: World) -> None:
    world.learn(lambda: world.hears(AGAIN, ELSEWHERE))
    assert world.recall() is not None
    assert world.calls == []


def test_what_contradicts_a_dump_under_way_is_told_after_it(world: World) -> None:
    learned = world.learn(lambda: world.hears(OTHER))
    assert learned.fdb
    assert world.recall() is None
    assert world.calls == [None]


def test_doubts_that_come_up_during_a_dump_outlast_it(world: World) -> None:
    def doubted() -> Held:
        world.memory.doubt()
        return look()

    world.learn(doubted)
    assert world.recall() is None


def test_a_dump_that_fails_swallows_no_notification(world: World) -> None:
    def fails() -> Held:
        world.hears(AGAIN)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        world.learn(fails)
    assert world.calls == [None]
    assert world.recall() is None


def test_too_many_notifications_during_a_dump_are_not_kept(world: World) -> None:
    def flooded() -> Held:
        assert any(world.memory.heard([ELSEWHERE] * 1000) for _ in range(100))
        return look()

    world.learn(flooded)
    assert world.recall() is None


def test_entries_that_cannot_be_told_apart_are_not_trusted(world: World) -> None:
    def twice() -> Held:
        held = look()
        body = memoryview(rt.replace_route(NET, Route(IPv4Address("192.168.64.9"), DEVICE, onlink=False), INDEX).body)
        held.take_route(rt.parse_route(body))
        return held

    learned = world.learn(twice)
    assert learned.routes == {NET: ROUTE}, "the first is the one in use"
    assert world.recall() is None
