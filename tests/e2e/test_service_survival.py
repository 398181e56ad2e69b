"""The rules vanish, proxyd dies: services answer on, or again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from driven_lab import PATIENCE, Cluster
from outside import ask, forget_services, get, node_port, run_pods, service

from podlane.lab import network, traffic
from podlane.runtime.command import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

TICKS = 80  # lines of the long answer, a tenth of a second and more apart
PAUSE = 0.02  # seconds between two requests of one host: together a hundred and more each second
SHORT = 1.5  # seconds to wait for what must not come
TABLE = ("ip", "podlane")
NETDS = "inet podlane-netd"


@pytest.fixture(scope="module")
def web(service_lab: Cluster) -> Cluster:
    run_pods(service_lab, 4)
    return service_lab


def nft(web: Cluster, *arguments: str) -> str:
    """On the first node."""
    return run(network.within(web.topology.netns(web.nodes[0]), ["nft", *arguments]), timeout=20).stdout


def empty(web: Cluster) -> None:
    for name in ("services", "endpoints"):
        nft(web, "flush", "map", *TABLE, name)


def delete_an_element(web: Cluster) -> None:
    """What the map of services has for the cluster address of `web`."""
    listed = msgspec.json.decode(nft(web, "-j", "list", "map", *TABLE, "services"))["nftables"]
    elements = next(entry["map"]["elem"] for entry in listed if "map" in entry)
    key = next(key["concat"] for key, _ in elements if web.address() in key["concat"])
    nft(web, "delete", "element", *TABLE, "services", "{", " . ".join(map(str, key)), "}")


BREAKAGES: dict[str, Callable[[Cluster], object]] = {
    "all tables of the node flushed": lambda web: nft(web, "flush", "ruleset"),
    "the table deleted": lambda web: nft(web, "delete", "table", *TABLE),
    "the table without rules": lambda web: nft(web, "flush", "table", *TABLE),
    "the table without elements": empty,
    "an element deleted": delete_an_element,
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_table_is_mended_without_being_told(web: Cluster, breakage: str) -> None:
    host = web.nodes[0]
    netns, address = web.topology.netns(host), web.address()
    tables = set(nft(web, "list", "tables").splitlines())
    web.lab.kill(host, "proxyd", signal.SIGSTOP)  # or it might be mended before it was seen broken
    try:
        BREAKAGES[breakage](web)
        assert ask(netns, address, 80, timeout=SHORT).error
    finally:
        web.lab.kill(host, "proxyd", signal.SIGCONT)
    took = web.wait("the service answers again", lambda: ask(netns, address, 80, timeout=SHORT).pod)
    print(f"{breakage}: mended after {took:.2f} s")
    answers = [ask(netns, address, 80) for _ in range(60)]
    assert {a.error for a in answers} == {""}
    assert {a.pod for a in answers} == {p.metadata.name for p in web.ready()}
    assert f"table {NETDS}" in tables
    web.wait("netd's table is there too", lambda: f"table {NETDS}" in nft(web, "list", "tables").splitlines())


def test_connections_old_and_new_outlive_proxyd(web: Cluster) -> None:
    host = web.nodes[0]
    outside, address = web.topology.underlay, web.address()
    port = node_port(service(web, "long", type="NodePort"))
    web.wait("the node port answers", lambda: ask(outside, host.address, port).pod)
    ways = ((outside, host.address, port), (web.topology.netns(host), address, 80))
    with ThreadPoolExecutor(len(ways)) as pool:
        long = [pool.submit(get, *way, f"/cgi-bin/ticks?{TICKS}", timeout=20) for way in ways]
        sources = {h.name: web.topology.netns(h) for h in web.nodes}
        with traffic.Traffic(sources, address, 80, pause=PAUSE, timeout=PATIENCE) as requests:
            time.sleep(1)
            web.lab.kill(host, "proxyd", signal.SIGKILL)
            time.sleep(2)
            assert not any(answer.done() for answer in long)
            web.lab.start(host, "proxyd")
            time.sleep(1)
            summary = requests.stop()
        for answer in long:
            status, body = answer.result()
            assert (status, body.split()) == (200, [str(tick) for tick in range(1, TICKS + 1)])
    forget_services(web)
    assert summary.requests > 100
    assert (summary.failed, summary.retried) == (0, 0), summary.late
