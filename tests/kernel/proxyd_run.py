"""`proxyd run` in the world's node, against a real etcd; and those who call its services all the time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from podlane.api.codec import encode
from podlane.api.types import ClusterConfig, Object
from podlane.store.keys import CLUSTER_CONFIG, key_for
from tests.kernel.conftest import eventually, inside
from tests.kernel.proxyd_nets import POD3, V4, V6, Net, Port, endpoints, web
from tests.kernel.proxyd_world import World

PORT = 10256
PROGRAM = Path(sys.executable).with_name("proxyd")


class Daemon:
    """proxyd on the world's node, and the store it follows."""

    def __init__(self, world: World, etcd: Any, log: Path) -> None:
        self.world, self.etcd, self.log = world, etcd, log
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, *nets: Net) -> None:
        """Say what the networks are: of both families, or of these."""
        nets = nets or (V4, V6)
        network: dict[str, Any] = {"EnableIPv4": V4 in nets, "EnableIPv6": V6 in nets}
        network |= {"Network": V4.pod_network} if V4 in nets else {}
        network |= {"IPv6Network": V6.pod_network} if V6 in nets else {}
        self.etcd.ctl("put", "/coreos.com/network/config", json.dumps(network))
        config = ClusterConfig(service_cidr=",".join(net.service_range for net in nets))
        self.etcd.ctl("put", CLUSTER_CONFIG, encode(config).decode())

    def put(self, *objects: Object) -> None:
        for each in objects:
            key = key_for(type(each), each.metadata.namespace, each.metadata.name)
            self.etcd.ctl("put", key, encode(each).decode())

    def serve(self, pods: list[str], *ports: Port) -> None:
        """A service of each family at `vip`, for which these pods are."""
        for net, name in ((V4, "web"), (V6, "web6")):
            self.put(*web(net, pods, *ports, name=name))

    def scale(self, pods: list[str], *ports: Port) -> None:
        for net, name in ((V4, "web"), (V6, "web6")):
            self.put(endpoints(net, pods, *ports, name=name))

    def start(self) -> None:
        argv = [str(PROGRAM), "run", f"--etcd-endpoints={self.etcd.endpoint}", "--node-name=node"]
        self.process = self.world.node.popen([*argv, f"--healthz-port={PORT}"], log=self.log)

    def begin(self, pods: list[str], *ports: Port) -> None:
        """Everything is there before it starts, and it is waited for."""
        self.configure()
        self.serve(pods, *ports)
        self.start()
        self.wait_ready()

    def signal(self, number: signal.Signals) -> int:
        assert self.process is not None
        return int(self.world.node.end(self.process, number))

    def probe(self, path: str) -> tuple[int, str]:
        with inside(self.world.node):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

    def wait_ready(self) -> None:
        eventually(lambda: self.probe("/readyz")[0] == 200, timeout=100)

    def metric(self, name: str) -> float:
        """A metric's value, of all its labels together; 0 if there is none yet."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.probe("/metrics")[1], re.MULTILINE)
        return sum(map(float, found))

    def wait_answer(self, pod: str, ip: str = V4.vip) -> None:
        """A generous deadline: it takes a tenth of a second, but a machine may be busy."""
        eventually(lambda: answers(self.world, self.world.client, ip) == pod, timeout=30, interval=0.02)


class Callers:
    """Some in pods, outside and on the node who call and call, each call a new connection."""

    def __init__(self, world: World) -> None:
        self.failures: list[tuple[str, OSError]] = []
        self.answered: set[str] = set()
        self._counts = [0, 0, 0, 0]
        self._world = world
        self._done = threading.Event()
        places = ((world.pods[POD3], V4.vip), (world.client, V4.vip), (world.node, V4.vip), (world.client, V6.vip))
        self._threads = [
            threading.Thread(target=self._call, args=(number, *place)) for number, place in enumerate(places)
        ]

    @property
    def count(self) -> int:
        return sum(self._counts)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _call(self, number: int, ns: Any, ip: str) -> None:
        while not self._done.is_set():
            try:
                self.answered.add(self._world.call(ns, ip, timeout=15)[0])
                self._counts[number] += 1
            except OSError as error:
                self.failures.append((ip, error))

    def more(self, calls: int = 200) -> None:
        """Wait until so many more were answered."""
        wanted = self.count + calls
        eventually(lambda: self.count >= wanted, timeout=100)


def answers(world: World, ns: Any, ip: str = V4.vip, port: int = 80) -> str | None:
    try:
        return world.call(ns, ip, port, timeout=0.5)[0]
    except OSError:
        return None


def tables(world: World) -> str:
    return str(world.node.run("nft list tables"))
