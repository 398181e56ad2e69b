"""Packets get through the ruleset of kube-proxy's shape: else the benchmarks would compare with nothing.

client 10.250.0.2 ── router ── server, which is at every pod's address
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from bench import kubeproxy_shape as shape
from bench.proxyd_objects import POD_NETWORK, SERVICE_RANGE, TARGET_PORT, Objects, changed, fewer, objects
from tests.kernel.conftest import inside

pytestmark = pytest.mark.kernel

NETWORKS = {"pod_network": POD_NETWORK, "service_range": SERVICE_RANGE}
PODS = "10.128.0.0/10"
OUTSIDE = "192.168.99.2"


class Line:
    """The namespaces; the server answers with the address it was reached at and the caller's."""

    def __init__(self, netns: Any) -> None:
        self.client, self.router, self.server = (netns.add(name) for name in ("client", "router", "server"))
        netns.link(self.client, "eth0", self.router, "left")
        netns.link(self.router, "right", self.server, "eth0")
        self._batch(
            self.client,
            "address add 10.250.0.2/24 dev eth0",
            f"address add {OUTSIDE}/24 dev eth0",
            "route add default via 10.250.0.1",
        )
        self._batch(
            self.router,
            "address add 10.250.0.1/24 dev left",
            "address add 192.168.99.1/24 dev left",
            "address add 10.251.0.1/24 dev right",
            "route add default via 10.251.0.2",
        )
        self.router.run("sysctl -qw net.ipv4.ip_forward=1")
        self._batch(
            self.server,
            "address add 10.251.0.2/24 dev eth0",
            "route add default via 10.251.0.1",
            f"route add local {PODS} dev lo",
        )
        self._stop = threading.Event()
        with inside(self.server):
            self._listener = socket.create_server(("", TARGET_PORT))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @staticmethod
    def _batch(ns: Any, *lines: str) -> None:
        ns.run(["ip", "-batch", "-"], stdin="\n".join(("link set lo up", *lines)))

    def _serve(self) -> None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                made, (caller, _) = self._listener.accept()
                with made:
                    made.sendall(f"{made.getsockname()[0]} {caller}".encode())

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        self._listener.close()

    def load(self, script: str) -> None:
        self.router.run(["nft", "-f", "-"], stdin=script)

    def ask(self, address: str, port: int = 80, *, source: str = "10.250.0.2") -> tuple[str, str]:
        """(the pod that answered, the caller it saw). Raises OSError."""
        with inside(self.client):
            made = socket.socket()
        with made:
            made.settimeout(3)
            made.bind((source, 0))
            made.connect((address, port))
            pod, _, caller = made.recv(100).decode().partition(" ")
        return pod, caller

    def asked(self, address: str, count: int = 40) -> Counter[str]:
        return Counter(self.ask(address)[0] for _ in range(count))


@pytest.fixture
def line(netns: Any) -> Iterator[Line]:
    with contextlib.closing(Line(netns)) as made:
        yield made


@pytest.fixture(scope="module")
def some() -> Objects:
    return objects(50, 3)


def port(some: Objects, number: int) -> shape.Port:
    return shape.ports(some.services[number], [some.slices[number]])[0]


def whole(some: Objects) -> list[shape.Port]:
    return [port(some, number) for number in range(len(some.services))]


def address(some: Objects, number: int) -> str:
    return some.services[number].spec.cluster_ip


def pods(some: Objects, number: int) -> set[str]:
    return {e.addresses[0] for e in some.slices[number].endpoints}


@pytest.mark.parametrize("in_parts", [False, True])
def test_every_service_leads_to_all_its_pods_and_no_other(line: Line, some: Objects, in_parts: bool) -> None:
    scripts = shape.parts(whole(some), 20, **NETWORKS) if in_parts else [shape.full(whole(some), **NETWORKS)]
    for script in scripts:
        line.load(script)
    for number in (0, 19, 20, 49):
        assert set(line.asked(address(some, number))) == pods(some, number)


def test_only_clients_from_outside_are_masqueraded(line: Line, some: Objects) -> None:
    line.load(shape.full(whole(some), **NETWORKS))
    assert line.ask(address(some, 1))[1] == "10.250.0.2"
    assert line.ask(address(some, 1), source=OUTSIDE)[1] == "10.251.0.1"


def test_a_port_that_no_service_has_is_refused(line: Line, some: Objects) -> None:
    line.load(shape.full(whole(some), **NETWORKS))
    with pytest.raises(ConnectionRefusedError):
        line.ask(address(some, 1), 81)


def test_a_changed_service_leads_to_its_new_pods_and_the_others_stay(line: Line, some: Objects) -> None:
    line.load(shape.full(whole(some), **NETWORKS))
    new = changed(7, some.slices[7])
    (after,) = shape.ports(some.services[7], [new])
    before = port(some, 7)
    line.load(shape.change([(before, after)], **NETWORKS))
    line.load(shape.delete(before.endpoint_chains.keys() - after.endpoint_chains.keys()))
    assert set(line.asked(address(some, 7))) == {e.addresses[0] for e in new.endpoints}
    assert set(line.asked(address(some, 8))) == pods(some, 8)


def test_a_service_without_endpoints_is_refused_until_it_has_some_again(line: Line, some: Objects) -> None:
    line.load(shape.full(whole(some), **NETWORKS))
    slices = [some.slices[7]]
    while slices[-1].endpoints:
        slices.append(fewer(slices[-1]))
    before = port(some, 7)
    (after,) = shape.ports(some.services[7], slices[-1:])
    line.load(shape.change([(before, after)], **NETWORKS))
    with pytest.raises(ConnectionRefusedError):
        line.ask(address(some, 7))
    line.load(shape.change([(after, before)], **NETWORKS))
    assert set(line.asked(address(some, 7))) == pods(some, 7)


def test_a_deleted_service_is_not_there_any_more(line: Line, some: Objects) -> None:
    line.load(shape.full(whole(some), **NETWORKS))
    gone = port(some, 7)
    line.load(shape.delete_service(gone, service_range=SERVICE_RANGE))
    line.load(shape.delete((gone.chain, *gone.endpoint_chains)))
    assert "service-00007" not in line.router.run("nft list table ip kube-proxy")
    with pytest.raises(TimeoutError):  # an address nobody has: dropped, as kube-proxy does
        line.ask(address(some, 7))
    assert set(line.asked(address(some, 8))) == pods(some, 8)
