"""Who takes netd's rules away wakes it, and nobody else does."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from netd.firewall import Firewall, FirewallRules
from podlane.errors import PodlaneError
from podlane.runtime.runner import Runner
from proxyd.nft import KernelNft
from proxyd.ruleset import Skeleton
from proxyd.tables import ENDPOINTS, IPV4, Frontend, Target, Transaction, pack_frontend, pack_mark, pack_target
from tests.dockerd_process import dockerd
from tests.kernel.conftest import Netns, NetnsMaker, eventually, inside
from tests.kernel.firewall_world import RULES, guard

pytestmark = pytest.mark.kernel

PEERS = replace(RULES, guard=guard("192.168.64.12", "192.168.64.13", "fd00:64::12"))
SOURCE = "inet podlane-netd vxlan-sources { 192.168.64.13 }"
QUIET = 0.3  # seconds in which a notification would have come


class Watched:
    """A firewall on a host, and how often its listener called; with `heal` each call is followed by a sync."""

    def __init__(self, ns: Netns) -> None:
        self.ns = ns
        self.firewall = Firewall()
        self.calls = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._runner: Runner | None = None
        self.sync()
        self._start(lambda: self.firewall.listen(self._called, self._stop))
        eventually(lambda: self.calls)  # it calls once when it begins to listen

    def heal(self) -> None:
        """From now on as netd does it, but for the resync every 10 s."""
        self._runner = runner = Runner(self.sync, name="firewall", min_interval=0.05, resync=3600)
        self._start(lambda: runner.run(self._stop))

    def sync(self, rules: FirewallRules = PEERS) -> None:
        with inside(self.ns):
            self.firewall.sync(rules)

    def quiet(self, change: Callable[[], Any]) -> bool:
        """Whether `change` makes no call."""
        before = self.calls
        change()
        threading.Event().wait(QUIET)
        return self.calls == before

    def calm(self) -> bool:
        return self.quiet(lambda: None)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def _called(self) -> None:
        self.calls += 1
        if self._runner is not None:
            self._runner.trigger()

    def _start(self, body: Callable[[], None]) -> None:
        def run() -> None:
            with inside(self.ns):
                body()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()


@pytest.fixture
def host(netns: NetnsMaker) -> Netns:
    return netns.host("node")


@pytest.fixture
def watched(host: Netns) -> Iterator[Watched]:
    made = Watched(host)
    yield made
    made.close()


JUMP = "-A FORWARD -j PODLANE-FORWARD"
BY_HAND = [
    "nft flush ruleset",
    "nft delete table inet podlane-netd",
    "nft flush table inet podlane-netd",
    "nft flush chain inet podlane-netd input",
    "nft insert rule inet podlane-netd postrouting accept",
    "nft add chain inet podlane-netd mine",
    "nft flush set inet podlane-netd vxlan-sources",
    f"nft delete element {SOURCE}",
    "nft add element inet podlane-netd vxlan-sources6 { fd00:64::66 }",
    "nft delete table ip filter",
    "nft flush chain ip6 filter FORWARD",
    "iptables -F",
    "iptables -D FORWARD -j PODLANE-FORWARD",
    "iptables -I FORWARD -s 192.0.2.1 -j DROP",
    "ip6tables -F PODLANE-FORWARD",
    "ip6tables -A PODLANE-FORWARD -j DROP",
]


@pytest.mark.parametrize("command", BY_HAND)
def test_what_is_taken_away_by_hand_comes_back(watched: Watched, command: str) -> None:
    watched.heal()
    right = kept(watched.ns)
    calls = watched.calls
    watched.ns.run(command)
    eventually(lambda: watched.calls > calls)
    eventually(lambda: kept(watched.ns) == right)
    eventually(watched.calm)


def kept(ns: Netns) -> str:
    """What netd keeps, and where in FORWARD it stands: behind DOCKER-USER, before all others."""
    others = "-s 192.0.2.1/32 -j DROP"
    programs = [ns.run([program, "-S"]) for program in ("iptables", "ip6tables")]
    for listed in programs:
        assert [line for line in listed.splitlines() if line.startswith("-A FORWARD")][:1] == [JUMP]
    listed = ns.run("nft list table inet podlane-netd", check=False) + "".join(programs)
    return "\n".join(line for line in listed.splitlines() if others not in line)


def test_own_writes_wake_nobody(watched: Watched) -> None:
    more = replace(RULES, guard=guard("192.168.64.12", "192.168.64.77"))
    for rules in (more, PEERS, replace(RULES, guard=None), replace(RULES, forward=False), PEERS):
        assert watched.quiet(lambda rules=rules: watched.sync(rules))
    with inside(watched.ns):
        assert watched.quiet(watched.firewall.remove)


def test_a_sync_that_failed_halfway_does_not_wake_itself(watched: Watched) -> None:
    half = replace(PEERS, networks=RULES.networks[:1], guard=guard(port=70000))

    def fails() -> None:
        with pytest.raises(PodlaneError, match="nft -f -"):
            watched.sync(half)

    assert watched.quiet(fails)
    assert "PODLANE-FORWARD" not in watched.ns.run("ip6tables -S")


def test_others_wake_nobody(watched: Watched) -> None:
    ns = watched.ns
    for command in (
        "nft add table inet other",
        "nft add chain inet other FORWARD",
        "nft add rule inet other FORWARD accept",
        "nft delete table inet other",
        "iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE",
        "iptables -N DOCKER",
        "iptables -A DOCKER -d 192.0.2.2 -p tcp --dport 80 -j ACCEPT",
        "ip6tables -I INPUT -s 2001:db8::1 -j DROP",
    ):
        assert watched.quiet(lambda command=command: ns.run(command)), command


def test_proxyds_many_commits_wake_nobody_and_hide_nothing(watched: Watched) -> None:
    with inside(watched.ns):
        proxyd = KernelNft(timeout=30)
        proxyd.load(Skeleton())
        change = Transaction(IPV4)
        for number in range(20_000):
            frontend = pack_frontend(Frontend(f"10.96.{number >> 8}.{number & 255}", "TCP", 80))
            change.put(ENDPOINTS, frontend + pack_mark(0), pack_target(Target("10.5.1.2", 80)), replaces=False)
        assert watched.quiet(lambda: proxyd.commit(change))
        proxyd.close()
    before = watched.calls
    watched.ns.run(f"nft delete element {SOURCE}")
    eventually(lambda: watched.calls > before)


def test_dockers_own_changes_wake_nobody_and_its_start_moves_nothing(host: Netns) -> None:
    watched = Watched(host)
    try:
        watched.heal()
        host.run("sysctl -q net.ipv4.ip_forward=0")  # a new namespace has the machine's; who enables it drops, too
        with dockerd(host.name) as engine:
            assert host.run("iptables -S FORWARD").startswith("-P FORWARD DROP")
            docker = ["docker", "-H", engine.url]
            subprocess.run([*docker, "network", "create", "web"], check=True, stdout=subprocess.DEVNULL)
            eventually(watched.calm)
            assert _in_order(host)
            run = [*docker, "run", "-d", "--rm", "--network=web", "--publish=8080:80", "podlane-test/busybox:1"]
            assert watched.quiet(lambda: subprocess.run([*run, "sleep", "60"], check=True, stdout=subprocess.DEVNULL))
            assert "--dport 80 -j ACCEPT" in host.run("iptables -S DOCKER")
            assert _in_order(host)
    finally:
        watched.close()


def _in_order(host: Netns) -> bool:
    listed = host.run("iptables -S FORWARD").splitlines()
    return listed[1:3] == ["-A FORWARD -j DOCKER-USER", JUMP]


def test_listening_ends_when_it_is_told_to(watched: Watched) -> None:
    watched.close()
    assert not any(thread.is_alive() for thread in watched._threads)
