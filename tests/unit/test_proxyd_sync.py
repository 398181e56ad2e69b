"""The sync over the fake kernel: named states in, transactions out, faults in between."""

from __future__ import annotations

import errno

import pytest
from proxyd_objects import ListSource, service, slice_of

from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from podlane.runtime.runner import NotReady
from proxyd.fake import FakeNft
from proxyd.proxy import RETIRE_AFTER, VERIFY_INTERVAL, Proxy
from proxyd.ruleset import Skeleton
from proxyd.tables import ENDPOINTS, SERVICES, Frontend, Refused, Target
from proxyd.walk import consistent

pytestmark = pytest.mark.unit

VIP = "10.96.0.1"
WEB = Frontend(VIP, "TCP", 80)
DNS = Frontend(VIP, "UDP", 53)


class FakeConntrack:
    def __init__(self):
        self.calls = []
        self.fail = False

    def clean(self, wanted, ranges=()):
        if self.fail:
            raise PodlaneError("list conntrack: deadline passed")
        self.calls.append((dict(wanted), tuple(ranges)))
        return 0

    def close(self):
        pass


class FakeHost:
    def __init__(self):
        self.calls = 0

    def ensure(self, _service_ranges):
        self.calls += 1
        return []


class World:
    """One node: its store, kernel and proxyd, which can be killed and started again."""

    def __init__(self):
        self.source, self.nft, self.conntrack, self.host = ListSource(), FakeNft(), FakeConntrack(), FakeHost()
        self.clock = FakeClock()
        self.triggers = []
        self.start()

    def start(self):
        self.nft.restart_proxyd()
        self.proxy = Proxy(
            source=self.source,
            nft=self.nft,
            conntrack=self.conntrack,
            host=self.host,
            node="node1",
            clock=self.clock,
            trigger_after=self.triggers.append,
        )

    def sync(self, *objects):
        self.source.put(*objects)
        self.proxy.sync()

    def served(self, frontend=WEB):
        tables = self.nft.tables
        return {tables[ENDPOINTS][(*frontend, slot)].address for slot in range(tables.count(frontend))}

    def committed(self):
        """What was committed since the last call, as text."""
        lines = [line for each in self.nft.commits for line in each.lines()]
        self.nft.commits.clear()
        return [line.replace("element ip podlane ", "") for line in lines if " rule " not in line]


@pytest.fixture
def world():
    return World()


def test_nothing_is_touched_before_the_first_complete_list(world):
    world.source.ready = False
    with pytest.raises(NotReady):
        world.proxy.sync()
    assert (world.nft.loads, world.nft.commits, world.host.calls) == (0, [], 0)
    assert world.proxy.not_ready() is not None
    world.source.ready = True
    world.proxy.sync()
    assert world.proxy.not_ready() is None
    assert world.nft.skeleton == Skeleton(("10.5.0.0/16",), ("10.96.0.0/16",))


def test_a_change_writes_only_what_changed(world):
    world.sync(
        *(service(f"s{i}", f"10.96.0.{i}") for i in range(1, 40)),
        *(slice_of(f"s{i}", ["10.5.1.2", "10.5.1.3"]) for i in range(1, 40)),
    )
    world.committed()
    loads = world.nft.loads
    world.sync(slice_of("s7", ["10.5.1.2", "10.5.1.9"], nodes={"10.5.1.9": "node2"}))
    assert world.committed() == [
        "delete endpoints { 10.96.0.7 . tcp . 80 . 0x00000001 }",
        "add endpoints { 10.96.0.7 . tcp . 80 . 0x00000001 : 10.5.1.9 . 8080 }",
    ]
    assert world.nft.loads == loads


def test_slots_are_retired_by_a_later_sync(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    assert (*WEB, 2) in world.nft.tables[ENDPOINTS]
    assert RETIRE_AFTER in world.triggers
    world.committed()
    world.proxy.sync()  # something else happened: too early for the slots
    assert world.committed() == []
    world.clock.advance(RETIRE_AFTER)
    world.proxy.sync()
    assert world.committed() == [
        "delete endpoints { 10.96.0.1 . tcp . 80 . 0x00000001 }",
        "delete endpoints { 10.96.0.1 . tcp . 80 . 0x00000002 }",
    ]


def test_a_slot_in_use_again_is_not_retired(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.1.4"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.sync(slice_of("web", ["10.5.1.2", "10.5.1.7"]))
    world.clock.advance(RETIRE_AFTER)
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.7"}
    assert (*WEB, 2) not in world.nft.tables[ENDPOINTS]


def test_a_restart_writes_nothing_when_nothing_changed(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.committed()
    world.start()
    world.proxy.sync()
    assert world.committed() == []
    assert world.proxy.not_ready() is None


def test_a_restart_after_a_kill_between_the_two_transactions(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.3"]))
    world.start()
    world.proxy.sync()
    world.clock.advance(RETIRE_AFTER)
    world.proxy.sync()
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
    assert ("10.96.0.9",) not in world.nft.tables["cluster_ips"]
    # .3 has kept its slot
    assert world.nft.tables[ENDPOINTS][(*WEB, 1)] == Target("10.5.1.3", 8080)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOENT, errno.ENFILE, errno.ENOMEM])
def test_after_an_error_everything_is_compared_again(world, number):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.nft.fail_next(Refused("commit transaction", number))
    with pytest.raises(Refused):
        world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    assert world.served() == {"10.5.1.2"}
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}


def test_a_commit_whose_answer_was_lost_is_found_done(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))

    def lose(_):
        world.nft.after_commit = lambda _: None
        raise PodlaneError("wait for netlink answer: deadline passed")

    world.nft.after_commit = lose
    with pytest.raises(PodlaneError):
        world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.committed()
    world.proxy.sync()
    assert world.committed() == ["delete chain ip podlane lb1"]
    assert world.served() == {"10.5.1.2", "10.5.1.3"}


def test_an_element_changed_by_hand_is_noticed_and_repaired(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.nft.meddle(lambda tables: tables[ENDPOINTS].update({(*WEB, 0): Target("192.0.2.66", 1)}))
    world.proxy.look()
    assert world.triggers[-1] == 0.0
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}


def test_a_flushed_ruleset_is_noticed_and_rebuilt(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.nft.flush_ruleset()
    world.proxy.look()
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}
    assert consistent(world.nft.tables) == []


def test_our_own_commits_are_no_meddling(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.clock.advance(RETIRE_AFTER)
    world.proxy.sync()
    before = len(world.triggers)
    world.proxy.look()
    assert len(world.triggers) == before


def test_every_verify_interval_the_kernel_is_compared_and_the_host_looked_at(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.proxy.sync()
    assert world.host.calls == 1
    world.nft.tables[SERVICES].clear()  # without a new generation: what no notice would show
    world.clock.advance(VERIFY_INTERVAL)
    world.proxy.sync()
    assert world.served() == {"10.5.1.2"}
    assert world.host.calls == 2


def test_chains_no_longer_used_go_at_the_next_verify(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    assert world.nft.tables.chains == {"lb1", "lb2"}
    world.clock.advance(VERIFY_INTERVAL)
    world.proxy.sync()
    assert world.nft.tables.chains == {"lb1"}


def test_another_pod_network_loads_the_static_part_again(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.committed()
    world.source.pod_networks = ("10.6.0.0/16",)
    world.proxy.sync()
    assert world.nft.skeleton.pod_networks == ("10.6.0.0/16",)
    assert world.committed() == []


def test_udp_entries_are_cleaned_after_the_commit_and_retried(world):
    world.sync(service("dns", VIP, "53/UDP"), slice_of("dns", ["10.5.1.2", "10.5.1.3"], "53/UDP"))
    assert world.conntrack.calls == [({DNS: {Target("10.5.1.2", 53), Target("10.5.1.3", 53)}}, ("10.96.0.0/16",))]
    world.conntrack.calls.clear()
    world.conntrack.fail = True
    with pytest.raises(PodlaneError):
        world.sync(slice_of("dns", ["10.5.1.3"], "53/UDP"))
    assert world.served(DNS) == {"10.5.1.3"}
    world.conntrack.fail = False
    world.proxy.sync()
    world.proxy.sync()
    assert world.conntrack.calls == [({DNS: {Target("10.5.1.3", 53)}}, ())]
