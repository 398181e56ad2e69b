"""The sync when the kernel refuses, is short of memory, or was changed by somebody else."""

from __future__ import annotations

import errno

import pytest
from proxyd_node import World, slot
from proxyd_objects import (
    SERVICE_RANGE,
    VIP,
    VIP6,
    frontend,
    service,
    slice_of,
    target,
)

from podlane.errors import PodlaneError
from podlane.runtime.runner import NotReady
from proxyd.tables import ENDPOINTS, IPV6, Refused
from proxyd.walk import consistent

pytestmark = pytest.mark.unit


@pytest.fixture
def world():
    return World()


@pytest.fixture
def dual():
    return World.dual()


# --- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.EEXIST, errno.ENOENT, errno.EBUSY, errno.ENOMEM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN]
)
def test_after_an_error_that_passes_or_is_outdated_everything_is_compared_again(world, number):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.nft.fail_next(Refused("commit transaction", number))
    with pytest.raises(Refused):
        world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    assert world.served() == {"10.5.1.2"}
    assert not world.told
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}


def test_an_element_somebody_else_put_there_causes_a_fresh_look_and_nobody_is_blamed(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.nft.meddle(lambda tables: tables[ENDPOINTS].update({slot(1): target("192.0.2.66:1")}))
    with pytest.raises(Refused, match="file exists"):
        world.sync(slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}
    assert not world.told


def test_a_kernel_short_of_memory_at_the_first_sync_blames_nobody(world):
    short = Refused("commit transaction", errno.ENOMEM)
    world.nft.fail_next(*[short] * 8)
    for _ in range(2):
        with pytest.raises(Refused):
            world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
        assert world.acknowledged == []
    world.nft._failures.clear()
    world.proxy.sync()
    assert world.served() == {"10.5.1.2"}
    assert not world.told


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


def test_one_familys_error_does_not_keep_the_other_from_being_served(dual):
    web = service("web", (VIP, VIP6))
    dual.sync(web, slice_of("web", ["10.5.1.2"]), slice_of("web", ["fd00:5::2"], suffix="6"))
    dual.nft.fail_next(Refused("commit transaction", errno.ENOMEM))
    with pytest.raises(Refused):
        dual.sync(slice_of("web", ["10.5.1.3"]), slice_of("web", ["fd00:5::3"], suffix="6"))
    dual.proxy.sync()
    assert dual.served() == {"10.5.1.3"}
    assert dual.served(frontend(f"[{VIP6}]:80"), IPV6) == {"fd00:5::3"}


def test_what_was_stored_while_the_hosts_addresses_could_not_be_read_is_not_lost(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.lost_addresses = PodlaneError("list addresses: deadline passed")
    with pytest.raises(PodlaneError):
        world.sync(slice_of("web", ["10.5.1.3"]))
    world.lost_addresses = None
    world.proxy.sync()
    assert world.served() == {"10.5.1.3"}


# --- others' hands -----------------------------------------------------------------------


def test_an_element_changed_by_hand_is_found_and_repaired(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.proxy.verify()
    world.nft.meddle(lambda tables: tables[ENDPOINTS].update({slot(0): target("192.0.2.66:1")}))
    world.proxy.verify()
    assert world.triggers[-1] == 0.0
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}
    assert world.proxy.status()["repairs"] == 1


def test_a_flushed_ruleset_is_found_and_rebuilt(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.nft.flush_ruleset()
    with pytest.raises(NotReady):
        world.proxy.verify()
    world.proxy.sync()
    assert world.served() == {"10.5.1.2", "10.5.1.3"}
    assert consistent(world.nft.tables) == []


def test_a_table_as_it_was_written_is_left_alone(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.settle()
    triggers, commits = len(world.triggers), len(world.nft.commits)
    world.proxy.verify()
    assert (len(world.triggers), len(world.nft.commits)) == (triggers, commits)
    assert world.proxy.status()["repairs"] == 0


def test_a_comparison_looks_at_the_host_too(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2"]))
    world.proxy.sync()
    assert world.host.calls == [((SERVICE_RANGE,), False)]
    world.proxy.verify()
    assert world.host.calls == [((SERVICE_RANGE,), False)] * 2


def test_chains_no_longer_used_go_when_everything_is_compared(world):
    world.sync(service("web", VIP), slice_of("web", ["10.5.1.2", "10.5.1.3"]))
    world.sync(slice_of("web", ["10.5.1.2"]))
    world.settle()
    assert world.nft.tables.chains == {"external-source", "lb1", "lb2"}
    world.start()
    world.proxy.sync()
    assert world.nft.tables.chains == {"external-source", "lb1"}
