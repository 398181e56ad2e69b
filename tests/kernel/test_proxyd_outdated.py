"""When the kernel refuses: what it has is read anew, and what it does not take is left out (finding 7)."""

from __future__ import annotations

import errno

import pytest

from proxyd.ruleset import Skeleton
from proxyd.tables import ENDPOINTS, SERVICES, Refused
from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import BOTH, FAR, POD1, POD2, POD3, V4, endpoints, service, web

pytestmark = pytest.mark.kernel

OTHER_VALUE = "delete element {0} podlane endpoints {{ {1} . tcp . 80 . {2} }}\n" + (
    "add element {0} podlane endpoints {{ {1} . tcp . 80 . {2} : {3} . 9999 }}"
)


@BOTH
def test_an_element_gone_by_hand_is_found_out_by_the_refusal(world, net):
    """ENOENT: of a batch that deletes what is not there nothing is done, so nothing can be guessed."""
    world.serve(POD1, POD2)
    world.sync(*web(net, [POD1]), *web(net, [POD1], name="other", ip=net.other_vip))
    world.nft_script(f"delete element {net.name} podlane endpoints {{ {net.vip} . tcp . 80 . 0 }}")
    with pytest.raises(Refused, match="no such file") as caught:
        world.sync(endpoints(net, [POD2]), endpoints(net, [POD2], name="other"))
    assert caught.value.errno == errno.ENOENT
    assert world.outcome(world.client, net.other_vip) == POD1  # refused whole
    world.sync()
    assert world.outcome(world.client, net.vip) == world.outcome(world.client, net.other_vip) == POD2


@BOTH
def test_an_element_put_by_hand_is_found_out_by_the_refusal(world, net):
    """EEXIST: the kernel does not overwrite."""
    world.serve(POD1, POD2)
    world.sync(*web(net, [POD1]))
    world.nft_script(
        f"add element {net.name} podlane endpoints {{ {net.vip} . tcp . 80 . 1 : {net.pods[POD3]} . 9999 }}"
    )
    with pytest.raises(Refused, match="file exists") as caught:
        world.sync(endpoints(net, [POD1, POD2]))
    assert caught.value.errno == errno.EEXIST
    world.sync()
    assert set(world.calls(world.client, 20, ip=net.vip)) == {POD1, POD2}


@BOTH
def test_a_value_changed_by_hand_is_put_right(world, net):
    world.serve(POD1, POD2)
    world.sync(*web(net, [POD1, POD2]))
    world.nft_script(OTHER_VALUE.format(net.name, net.vip, 1, net.pods[POD3]))
    assert {world.outcome(world.client, net.vip) for _ in range(10)} & {"refused", "timeout"}
    world.repair()
    assert set(world.calls(world.client, 20, ip=net.vip)) == {POD1, POD2}


def with_room_for(world, net, elements):
    """Let each map have no more than so many, and sync."""
    world.nft_script(f"delete table {net.name} podlane")
    with inside(world.node):
        world.nft.load(Skeleton((net.pod_network,), (net.service_range,), size=elements, family=net.family))
    world.repair()


@BOTH
def test_what_the_kernel_does_not_take_is_left_out_and_all_else_served(world, net):
    """ENFILE: there is room for two of three services."""
    world.serve(POD1, POD2, POD3, FAR)
    names = ("a", "b", "c")
    vips = [f"{net.vip[:-1]}{number}" for number in (1, 2, 3)]
    for name, vip in zip(names, vips, strict=True):
        world.sync(*web(net, [POD1], name=name, ip=vip))
    with_room_for(world, net, 2)
    served = [vip for vip in vips if world.outcome(world.client, vip) == POD1]
    assert len(served) == 2
    (left,) = set(vips) - set(served)
    assert world.left_out != []
    assert all(left in each and "too many open files" in each for each in world.left_out)
    assert len(world.nft.dump(net.family)[SERVICES]) == 2
    # it is tried again when its service changes, and is served once there is room
    world.store.drop(service(net, name=names[vips.index(served[0])]))
    world.sync(settle=True)
    world.sync(service(net, name=names[vips.index(left)], ip=left, session_affinity="None", affinity=300))
    assert world.outcome(world.client, left) == POD1
    assert world.outcome(world.client, served[1]) == POD1


def test_a_whole_table_the_kernel_has_no_room_for_is_told_of(world):
    """Not one service fits: the sync says so instead of going on as if."""
    world.sync(*web(V4, [POD1, POD2]))
    with_room_for(world, V4, 1)
    assert world.left_out != []
    assert world.nft.dump(V4.family)[ENDPOINTS] == {}
