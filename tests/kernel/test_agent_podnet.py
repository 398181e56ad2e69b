"""One suite for the pod network in memory and the kernel's (in a namespace of the test's own).

A process in a network namespace of its own stands in for a container.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from podlane.runtime.netlink import NETLINK_ROUTE, NetlinkSocket
from scheduler.agent import rtnl
from scheduler.agent.network import NetworkSpec, Segment
from scheduler.agent.podnet import KernelPodNet, Plug, PodNet, PodNetError, is_attached, strays
from scheduler.agent.podnetfake import FakePodNet, Inside
from tests.kernel.conftest import Netns, NetnsMaker, eventually, inside

pytestmark = [pytest.mark.contract, pytest.mark.kernel]

NET = NetworkSpec(subnet="10.99.7.0/24", gateway="10.99.7.1", mtu=1400)
DUAL = replace(NET, second=Segment("fd00:99:7::/64", "fd00:99:7::1"))
MOVED = NetworkSpec(subnet="10.99.8.0/24", gateway="10.99.8.1", mtu=1400)


@dataclass
class Container:
    id: str
    pid: int

    def plug(self, ip: str, network: NetworkSpec = NET) -> Plug:
        return Plug(self.id, ip, network)


@dataclass
class World:
    """The network, and what a person can do to it."""

    net: PodNet
    start: Callable[[], int]
    end: Callable[[int], None]
    look: Callable[[int], Inside | None]
    delete_bridge: Callable[[], None]
    spoil_bridge: Callable[[], None]
    occupy: Callable[[], None]
    unplug: Callable[[str], None]
    set_down: Callable[[str], None]
    watching: Callable[[threading.Event, Callable[[str], None]], None]
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def container(self) -> Container:
        return Container(f"{next(self.numbers):064x}"[::-1], self.start())


def fake_world() -> World:
    pids = itertools.count(100)
    alive: set[int] = set()

    def start() -> int:
        pid = next(pids)
        alive.add(pid)
        return pid

    net = FakePodNet(alive.__contains__)
    return World(
        net,
        start=start,
        end=alive.discard,
        look=net.look,
        delete_bridge=net.delete_bridge,
        spoil_bridge=lambda: net.set_bridge(mtu=1300, address="10.1.2.3/24", mac="02:00:00:00:00:07"),
        occupy=net.occupy,
        unplug=net.unplug,
        set_down=net.set_down,
        watching=net.watch,
    )


class Processes:
    """`sleep`s in namespaces of their own, ended with the test."""

    def __init__(self) -> None:
        self.running: dict[int, subprocess.Popen[str]] = {}

    def start(self) -> int:
        script = ["sh", "-c", "echo up; exec sleep 300"]
        process = subprocess.Popen(["unshare", "--net", *script], stdout=subprocess.PIPE, text=True)
        self.running[process.pid] = process
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process.pid

    def end(self, pid: int) -> None:
        process = self.running.pop(pid)
        process.kill()
        process.communicate(timeout=10)

    def close(self) -> None:
        for pid in list(self.running):
            self.end(pid)


def ip_inside(pid: int, *words: str) -> Any:
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", *words]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout or "[]")


def look_inside(pid: int) -> Inside | None:
    links = [x for x in ip_inside(pid, "address") if x["ifname"] == "eth0"]
    if not links:
        return None
    addresses = {f"{a['local']}/{a['prefixlen']}" for a in links[0]["addr_info"] if a["scope"] == "global"}
    both = [*ip_inside(pid, "route"), *ip_inside(pid, "-6", "route")]
    routes = [r["gateway"] for r in both if r["dst"] == "default"]
    return Inside(frozenset(addresses), links[0]["address"], links[0]["mtu"], *routes)


def kernel_world(host: Netns, processes: Processes) -> World:
    def ip(words: str) -> None:
        host.run(f"ip {words}")

    def spoil() -> None:
        ip("link set podlane0 down mtu 1300 address 02:00:00:00:00:07")
        ip("address add 10.1.2.3/24 dev podlane0")

    net = KernelPodNet()

    def watch(stop: threading.Event, gone: Callable[[str], None]) -> None:
        with inside(host):
            net.watch(stop, gone)

    return World(
        net,
        start=processes.start,
        end=processes.end,
        look=look_inside,
        delete_bridge=lambda: ip("link delete podlane0"),
        spoil_bridge=spoil,
        occupy=lambda: ip("link add podlane0 type veth peer name other"),
        unplug=lambda link: ip(f"link set {link} nomaster"),
        set_down=lambda link: ip(f"link set {link} down"),
        watching=watch,
    )


@pytest.fixture
def host(netns: NetnsMaker) -> Iterator[Netns]:
    host = netns.add("a")
    with inside(host):
        yield host


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def kernel(host: Netns, processes: Processes) -> World:
    return kernel_world(host, processes)


@pytest.fixture(params=["fake", "kernel"])
def world(request: pytest.FixtureRequest) -> World:
    return fake_world() if request.param == "fake" else request.getfixturevalue("kernel")


def commands(world: World, network: NetworkSpec = NET) -> list[str]:
    return [str(change) for change in world.net.ensure(network)]


def test_the_bridge_is_made_once(world: World) -> None:
    assert world.net.ports() == {}
    assert commands(world) == [
        "ip link add podlane0 address 0a:58:0a:63:07:01 mtu 1400 type bridge",
        "ip address add 10.99.7.1/24 dev podlane0",
        "ip link set podlane0 up",
    ]
    assert commands(world) == []


def test_what_was_changed_by_hand_is_made_right(world: World) -> None:
    commands(world)
    world.spoil_bridge()
    assert commands(world) == [
        "ip link set podlane0 address 0a:58:0a:63:07:01",
        "ip link set podlane0 mtu 1400",
        "ip address delete 10.1.2.3/24 dev podlane0",
        "ip link set podlane0 up",
    ]
    assert commands(world) == []


def test_another_subnet_replaces_the_first(world: World) -> None:
    commands(world)
    assert commands(world, MOVED) == [
        "ip link set podlane0 address 0a:58:0a:63:08:01",
        "ip address delete 10.99.7.1/24 dev podlane0",
        "ip address add 10.99.8.1/24 dev podlane0",
    ]
    assert commands(world, MOVED) == []


def test_a_gateway_elsewhere_in_the_subnet(world: World) -> None:
    commands(world)
    commands(world, replace(NET, gateway="10.99.7.254"))
    assert commands(world, replace(NET, gateway="10.99.7.254")) == []


def test_another_s_link_is_left_alone(world: World) -> None:
    world.occupy()
    with pytest.raises(PodNetError, match="of kind"):
        world.net.ensure(NET)


def test_a_container_is_attached_with_its_address(world: World) -> None:
    commands(world)
    one, two = world.container(), world.container()
    assert not is_attached(one.plug("10.99.7.5"), world.net.ports())
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    world.net.attach(two.plug("10.99.7.6"), two.pid)
    assert world.look(one.pid) == Inside(frozenset({"10.99.7.5/24"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1")
    ports = world.net.ports()
    assert is_attached(one.plug("10.99.7.5"), ports)
    assert is_attached(two.plug("10.99.7.6"), ports)
    assert strays(ports, {one.id}) == {two.plug("").link}


def test_links_of_containers_that_are_gone_are_found_also_off_the_bridge(world: World) -> None:
    commands(world)
    one, two = world.container(), world.container()
    for number, each in enumerate((one, two), 5):
        world.net.attach(each.plug(f"10.99.7.{number}"), each.pid)
    world.unplug(two.plug("").link)
    assert set(world.net.ports()) == {one.plug("").link}
    assert strays(world.net.plugs(), {one.id}) == {two.plug("").link}
    world.net.detach(strays(world.net.plugs(), {one.id}))
    assert world.net.plugs() == {one.plug("").link}
    assert world.look(two.pid) is None


def test_attaching_again_changes_nothing(world: World) -> None:
    commands(world)
    one = world.container()
    for _ in range(2):
        world.net.attach(one.plug("10.99.7.5"), one.pid)
    assert len(world.net.ports()) == 1
    assert world.look(one.pid) == Inside(frozenset({"10.99.7.5/24"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1")


@pytest.mark.parametrize("harm", ["bridge", "unplugged", "down", "port"])
def test_what_was_taken_apart_by_hand_is_completed(world: World, harm: str) -> None:
    commands(world)
    one = world.container()
    plug = one.plug("10.99.7.5")
    world.net.attach(plug, one.pid)
    match harm:
        case "bridge":
            world.delete_bridge()
            assert world.net.ports() == {}
            commands(world)
        case "unplugged":
            world.unplug(plug.link)
        case "down":
            world.set_down(plug.link)
        case "port":
            world.net.detach([plug.link])
            assert world.look(one.pid) is None
    assert not is_attached(plug, world.net.ports())
    world.net.attach(plug, one.pid)
    assert is_attached(plug, world.net.ports())
    assert world.look(one.pid) == Inside(frozenset({"10.99.7.5/24"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1")


def test_a_changed_network_reaches_what_is_attached(world: World) -> None:
    commands(world)
    one = world.container()
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    wider = NetworkSpec(subnet="10.99.0.0/16", gateway="10.99.0.1", mtu=1300)
    commands(world, wider)
    plug = one.plug("10.99.7.5", wider)
    assert not is_attached(plug, world.net.ports())
    world.net.attach(plug, one.pid)
    assert is_attached(plug, world.net.ports())
    assert world.look(one.pid) == Inside(frozenset({"10.99.7.5/16"}), "0a:58:0a:63:07:05", 1300, "10.99.0.1")


BOTH = Inside(frozenset({"10.99.7.5/24", "fd00:99:7::5/64"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1", "fd00:99:7::1")


def test_a_network_of_both_families(world: World) -> None:
    assert commands(world, DUAL) == [
        "ip link add podlane0 address 0a:58:0a:63:07:01 mtu 1400 type bridge",
        "ip address add 10.99.7.1/24 dev podlane0",
        "ip address add fd00:99:7::1/64 dev podlane0",
        "ip link set podlane0 up",
    ]
    assert commands(world, DUAL) == []
    one = world.container()
    plug = one.plug("10.99.7.5", DUAL)
    for _ in range(2):
        world.net.attach(plug, one.pid)
        assert world.look(one.pid) == BOTH
        assert is_attached(plug, world.net.ports())
    assert world.net.ports()[plug.link].ips == ("10.99.7.5", "fd00:99:7::5")


def test_a_network_of_ipv6_alone(world: World) -> None:
    alone = NetworkSpec("fd00:99:7::/64", "fd00:99:7::1", 1400)
    assert commands(world, alone)[1] == "ip address add fd00:99:7::1/64 dev podlane0"
    one = world.container()
    world.net.attach(one.plug("fd00:99:7::5", alone), one.pid)
    inside = Inside(frozenset({"fd00:99:7::5/64"}), "0a:58:00:00:00:05", 1400, "fd00:99:7::1")
    assert world.look(one.pid) == inside
    assert is_attached(one.plug("fd00:99:7::5", alone), world.net.ports())


def test_ipv6_comes_to_what_is_attached_and_goes(world: World) -> None:
    commands(world)
    one = world.container()
    alone = Inside(frozenset({"10.99.7.5/24"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1")
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    assert commands(world, DUAL) == ["ip address add fd00:99:7::1/64 dev podlane0"]
    assert not is_attached(one.plug("10.99.7.5", DUAL), world.net.ports())
    world.net.attach(one.plug("10.99.7.5", DUAL), one.pid)
    assert world.look(one.pid) == BOTH
    assert commands(world) == ["ip address delete fd00:99:7::1/64 dev podlane0"]
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    assert world.look(one.pid) == alone


def test_a_port_goes_with_its_container(world: World) -> None:
    commands(world)
    one = world.container()
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    world.end(one.pid)
    eventually(lambda: world.net.ports() == {})


def test_detaching_is_content_with_what_is_gone(world: World) -> None:
    commands(world)
    world.net.detach(["plnothing"])
    one = world.container()
    world.net.attach(one.plug("10.99.7.5"), one.pid)
    world.net.detach([one.plug("").link, "plnothing"])
    assert world.net.ports() == {}


def test_what_cannot_be_attached(world: World) -> None:
    one = world.container()
    with pytest.raises(PodNetError, match="no such bridge"):
        world.net.attach(one.plug("10.99.7.5"), one.pid)
    commands(world)
    world.end(one.pid)
    with pytest.raises(PodNetError, match="No such file"):
        world.net.attach(one.plug("10.99.7.5"), one.pid)
    two = world.container()
    world.net.attach(two.plug("10.99.7.6"), two.pid)
    with pytest.raises(PodNetError, match="eth0 of another's making"):
        world.net.attach(Container("f" * 64, two.pid).plug("10.99.7.7"), two.pid)


def test_what_leaves_is_told(world: World) -> None:
    commands(world)
    told: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=world.watching, args=(stop, told.append))
    thread.start()
    try:
        one, two = world.container(), world.container()
        first, second = one.plug("10.99.7.5"), two.plug("10.99.7.6")

        def again() -> bool:  # whether the watch has begun
            world.net.attach(first, one.pid)
            world.net.detach([first.link])
            return first.link in told

        eventually(again)
        world.net.attach(second, two.pid)
        world.unplug(second.link)
        eventually(lambda: second.link in told)
        world.delete_bridge()
        eventually(lambda: "podlane0" in told)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


# --- what only a kernel does -------------------------------------------------------------------------


def test_pods_reach_the_host_and_each_other(kernel: World, host: Netns) -> None:
    commands(kernel)
    one, two = kernel.container(), kernel.container()
    kernel.net.attach(one.plug("10.99.7.5"), one.pid)
    kernel.net.attach(two.plug("10.99.7.6"), two.pid)
    assert host.ping("10.99.7.5", count=3) == 3
    pod = Netns("pod")
    argv = pod.ping_argv("10.99.7.6", count=3)
    told = subprocess.run(
        ["nsenter", f"--net=/proc/{one.pid}/ns/net", *argv], check=True, capture_output=True, timeout=30
    )
    assert len(told.stdout.split()) == 3


@pytest.fixture
def docker_like(processes: Processes) -> Callable[[Container], None]:
    """What Docker does to the namespaces it makes."""

    def off(container: Container) -> None:
        setting = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
        argv = ["nsenter", f"--net=/proc/{container.pid}/ns/net", "sh", "-c", f"echo 1 > {setting}"]
        subprocess.run(argv, check=True, timeout=10)

    return off


def test_ipv6_works_at_once_where_docker_has_turned_it_off(
    kernel: World, host: Netns, docker_like: Callable[[Container], None]
) -> None:
    commands(kernel, DUAL)
    one, two = kernel.container(), kernel.container()
    for container, ip in ((one, "10.99.7.5"), (two, "10.99.7.6")):
        docker_like(container)
        kernel.net.attach(container.plug(ip, DUAL), container.pid)
    assert look_inside(one.pid) == BOTH
    assert host.ping("fd00:99:7::5", count=3) == 3
    for destination in ("fd00:99:7::6", "fd00:99:7::1", "::1"):
        argv = ["nsenter", f"--net=/proc/{one.pid}/ns/net", *Netns("pod").ping_argv(destination, count=3)]
        told = subprocess.run(argv, check=True, capture_output=True, timeout=30)
        assert len(told.stdout.split()) == 3, destination
    states = [a for x in ip_inside(one.pid, "-6", "address") for a in x["addr_info"]]
    assert not any(a.get("dadfailed") or a.get("tentative") for a in states if a["scope"] == "global")


def test_a_host_that_turns_ipv6_off_for_new_links_has_it_on_the_bridge(kernel: World, host: Netns) -> None:
    host.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"])
    commands(kernel, DUAL)
    assert "fd00:99:7::1/64" in host.run("ip -6 address show podlane0")
    assert commands(kernel, DUAL) == []


def test_an_ipv6_address_that_leaves_the_bridge_is_told(kernel: World, host: Netns) -> None:
    commands(kernel, DUAL)
    told: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=kernel.watching, args=(stop, told.append))
    thread.start()

    def again() -> bool:
        host.run("ip address delete fd00:99:7::1/64 dev podlane0")
        commands(kernel, DUAL)
        return "podlane0" in told

    try:
        eventually(again)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_reused_address_is_reached_at_once(kernel: World, host: Netns) -> None:
    """The neighbour entry made for its last owner is still right: the MAC follows from the address."""
    commands(kernel)
    for _ in range(3):
        one = kernel.container()
        kernel.net.attach(one.plug("10.99.7.5"), one.pid)
        assert host.ping("10.99.7.5", count=1) == 1
        kernel.net.detach([one.plug("").link])


def test_the_bridge_keeps_its_mac_while_ports_come_and_go(kernel: World, host: Netns) -> None:
    commands(kernel)
    low = kernel.container()
    kernel.net.attach(low.plug("10.99.7.5"), low.pid)
    host.run(f"ip link set {low.plug('').link} address 00:00:00:00:00:02")  # the lowest would win
    assert "0a:58:0a:63:07:01" in host.run("ip link show podlane0")


@pytest.mark.parametrize("steps", [1, 2])
def test_a_half_done_attachment_is_completed(kernel: World, host: Netns, steps: int) -> None:
    commands(kernel)
    one = kernel.container()
    plug = one.plug("10.99.7.5")
    host.run(f"ip link add {plug.link} type veth peer name eth0 netns {one.pid}")
    if steps > 1:
        ip_inside(one.pid, "address", "add", "10.99.7.9/24", "dev", "eth0")
        ip_inside(one.pid, "link", "set", "eth0", "up")
    assert not is_attached(plug, kernel.net.ports())
    kernel.net.attach(plug, one.pid)
    assert is_attached(plug, kernel.net.ports())
    assert look_inside(one.pid) == Inside(frozenset({"10.99.7.5/24"}), "0a:58:0a:63:07:05", 1400, "10.99.7.1")


def test_the_host_s_own_namespace_is_never_set_up_as_a_pod_s(kernel: World, host: Netns) -> None:
    commands(kernel)
    process = host.popen(["sleep", "300"])
    eventually(lambda: is_in(process.pid, host))
    with pytest.raises(PodNetError, match="the host's"):
        kernel.net.attach(Container("a" * 64, process.pid).plug("10.99.7.5"), process.pid)


def is_in(pid: int, host: Netns) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return "podlane0" in json.dumps(ip_inside(pid, "link"))
    return False


def test_many_at_once(kernel: World, host: Netns) -> None:
    commands(kernel)
    plugs = {}
    for number in range(12):
        one = kernel.container()
        plugs[one.pid] = one.plug(f"10.99.7.{number + 2}")
    failed: list[Exception] = []

    def attach(pid: int, plug: Plug) -> None:
        with inside(host):
            try:
                kernel.net.attach(plug, pid)
            except PodNetError as error:
                failed.append(error)

    threads = [threading.Thread(target=attach, args=each) for each in plugs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    ports = kernel.net.ports()
    assert all(is_attached(plug, ports) for plug in plugs.values())


def test_links_are_read_as_ip_shows_them(kernel: World, host: Netns) -> None:
    host.run("ip link add br0 type bridge")
    host.run("ip link add one mtu 1234 address 02:00:00:00:00:01 type veth peer name two")
    host.run("ip link set one master br0 alias here up")
    with NetlinkSocket(NETLINK_ROUTE) as socket:
        one = rtnl.parse_link(socket.ask(rtnl.get_link("one")))
        bridge = rtnl.parse_link(socket.ask(rtnl.get_link("br0")))
    assert replace(one, index=0) == rtnl.Link(
        0, "one", "veth", "02:00:00:00:00:01", 1234, up=True, master=bridge.index, alias="here"
    )
