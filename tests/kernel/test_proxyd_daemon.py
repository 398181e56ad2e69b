"""The daemon as its supervisor sees it: real etcd, real kernel, signals, and traffic that must not notice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxyd_world import (
    FAR,
    POD1,
    POD2,
    POD3,
    POD_NETWORK,
    SERVICE_RANGE,
    TCP,
    UDP,
    VIP,
    World,
    ask,
    endpoints,
    inside,
    service,
    web,
)

from podlane.api.codec import encode
from podlane.api.types import ClusterConfig, Object
from podlane.store.keys import CLUSTER_CONFIG, key_for

pytestmark = pytest.mark.kernel

PORT = 10256


class Daemon:
    """proxyd on the world's node, and the store it follows."""

    def __init__(self, world: World, etcd: Any, log: Path) -> None:
        self.world, self.etcd, self.log = world, etcd, log
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self) -> None:
        self.etcd.ctl("put", "/coreos.com/network/config", f'{{"Network":"{POD_NETWORK}"}}')
        self.etcd.ctl("put", CLUSTER_CONFIG, encode(ClusterConfig(service_cidr=SERVICE_RANGE)).decode())

    def put(self, *objects: Object) -> None:
        for each in objects:
            key = key_for(type(each), each.metadata.namespace, each.metadata.name)
            self.etcd.ctl("put", key, encode(each).decode())

    def start(self) -> None:
        program = Path(sys.executable).with_name("proxyd")
        argv = [str(program), "run", f"--etcd-endpoints={self.etcd.endpoint}", "--node-name=node"]
        self.process = self.world.node.popen([*argv, f"--healthz-port={PORT}"], log=self.log)

    def signal(self, number: signal.Signals) -> int:
        assert self.process is not None
        return int(self.world.node.end(self.process, number))

    def probe(self, path: str) -> tuple[int, str]:
        with inside(self.world.node):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=2) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

    def wait_ready(self) -> None:
        until(lambda: self.probe("/readyz")[0] == 200, f"ready; it says {self.probe('/readyz')}")

    def memory(self) -> int:
        """Resident kilobytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def until(check: Callable[[], Any], what: str, timeout: float = 15.0) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")


@pytest.fixture
def daemon(netns: Any, netns_etcd: Any, tmp_path: Path) -> Iterator[Daemon]:
    world = World(netns, node=netns.host("node"), client=netns.underlay)
    made = Daemon(world, netns_etcd, tmp_path / "proxyd.log")
    try:
        yield made
    finally:
        print(made.log.read_text() if made.log.exists() else "no log")
        world.close()


class Callers:
    """Someone in a pod and someone outside who call and call, each call a new connection."""

    def __init__(self, world: World) -> None:
        self.failures: list[OSError] = []
        self.count = 0
        self.answered: set[str] = set()
        self._world = world
        self._done = threading.Event()
        places = (world.pods[POD3], world.client, world.node)
        self._threads = [threading.Thread(target=self._call, args=(ns,)) for ns in places]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(10)

    def _call(self, ns: Any) -> None:
        while not self._done.is_set():
            try:
                self.answered.add(self._world.call(ns, timeout=3)[0])
                self.count += 1
            except OSError as error:
                self.failures.append(error)
            time.sleep(0.002)


def tables(world: World) -> str:
    return str(world.node.run("nft list tables"))


def answers(world: World, ns: Any, ip: str = VIP) -> str | None:
    try:
        return world.call(ns, ip=ip, timeout=0.5)[0]
    except OSError:
        return None


def test_waits_for_the_lists_then_serves_and_tells_when_it_is_ready(daemon):
    world = daemon.world
    world.serve(POD1)
    daemon.start()
    until(lambda: daemon.probe("/healthz")[0] == 200, "healthy")
    time.sleep(0.5)
    assert tables(world) == ""
    status, why = daemon.probe("/readyz")
    assert status == 503
    assert "kernel" in why
    daemon.put(*web([POD1]))
    daemon.configure()
    daemon.wait_ready()
    assert world.call(world.pods[POD3])[0] == POD1
    assert world.call(world.client)[0] == POD1
    assert world.call(world.node)[0] == POD1
    # the pod's own port on the bridge was given the leave to send back
    assert world.call(world.pods[POD1])[0] == POD1
    metrics = daemon.probe("/metrics")[1]
    assert 'podlane_proxyd_elements{map="endpoints"} 1.0' in metrics
    assert daemon.memory() < 60_000
    assert daemon.signal(signal.SIGTERM) == 0
    assert "stopped" in daemon.log.read_text()
    # its work stays
    assert world.call(world.pods[POD3])[0] == POD1


def test_killed_and_started_again_nobody_notices(daemon):
    world = daemon.world
    world.serve(POD1, POD2, FAR, udp=5353)
    daemon.configure()
    daemon.put(*web([POD1, POD2], TCP, UDP))
    daemon.start()
    daemon.wait_ready()
    connections = [world.connect(ns) for ns in (world.pods[POD3], world.client, world.node)]
    flow = world.flow(world.pods[POD3])
    kept = [ask(each)[0] for each in (*connections, flow)]
    with Callers(world) as callers:
        for wanted in ([POD1, POD2], [POD1, POD2, FAR]):
            daemon.signal(signal.SIGKILL)
            time.sleep(0.2)
            daemon.put(endpoints(wanted, TCP, UDP))  # while nobody looks
            generation = world.nft.generation()
            daemon.start()
            daemon.wait_ready()
            if wanted == [POD1, POD2]:
                # nothing to do but to load the rules once and find everything as it should be
                assert world.nft.generation() - generation == 1
        until(lambda: FAR in callers.answered, "the third endpoint is used")
    assert callers.failures == []
    assert callers.count > 50
    assert [ask(each)[0] for each in (*connections, flow)] == kept


def test_without_etcd_traffic_goes_on_and_it_catches_up(daemon):
    world = daemon.world
    world.serve(POD1, POD2)
    daemon.configure()
    daemon.put(*web([POD1]))
    daemon.start()
    daemon.wait_ready()
    daemon.etcd.stop(signal.SIGKILL)
    with Callers(world) as callers:
        time.sleep(1)
        assert daemon.probe("/readyz")[0] == 200
    assert callers.failures == []
    daemon.etcd.start()
    daemon.put(endpoints([POD2], TCP))
    until(lambda: answers(world, world.client) == POD2, "it follows etcd again", timeout=25)


def test_flushed_by_hand_it_is_right_again_and_other_tables_are_left_alone(daemon):
    world = daemon.world
    world.serve(POD1)
    daemon.configure()
    daemon.put(*web([POD1]))
    daemon.start()
    daemon.wait_ready()
    for script in (
        "flush ruleset",
        "delete table ip podlane",
        "flush map ip podlane endpoints",
        "flush chain ip podlane lb1",
    ):
        world.nft_script(script)
        until(lambda: answers(world, world.client) == POD1, f"repaired after {script}")
    other = "table ip other { chain in { type filter hook input priority 0; counter; }; }"
    world.nft_script(other)
    before = world.node.run("nft -s list table ip other")
    daemon.put(service(("TCP", 80), name="b", ip="10.96.0.2"), endpoints([POD1], TCP, name="b"))
    until(lambda: answers(world, world.client, ip="10.96.0.2") == POD1, "the second service")
    assert world.node.run("nft -s list table ip other") == before
    assert "changed by someone else" in daemon.log.read_text()


def test_a_change_is_taken_up_and_uninstall_removes_everything(daemon):
    world = daemon.world
    world.serve(POD1, POD2)
    daemon.configure()
    daemon.put(*web([POD1]))
    daemon.start()
    daemon.wait_ready()
    daemon.put(endpoints([POD2], TCP))
    until(lambda: answers(world, world.client) == POD2, "the new endpoint")
    daemon.etcd.ctl("del", "/registry/services/specs/default/web")
    until(lambda: VIP not in world.node.run("nft list map ip podlane services"), "the service is gone")
    daemon.signal(signal.SIGTERM)
    program = Path(sys.executable).with_name("proxyd")
    world.node.run([str(program), "uninstall"])
    assert tables(world) == ""
