"""Hosts in namespaces with a real netd and a pod each, on one etcd.

Owns: starting and asking netd, making the pod that Docker would make, and what
a host's kernel holds of the overlay, in a form that can be compared. A test
file makes its `Cluster` in a fixture of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from podlane.api.subnets import SubnetFile
from tests.kernel.conftest import Netns, NetnsEtcd, NetnsMaker, eventually, inside

PREFIX = "/coreos.com/network"
PORT = 10457
NETWORK = "10.5.0.0/16"
CONFIG = f'{{"Network":"{NETWORK}","SubnetMax":"10.5.199.0","Backend":{{"Type":"vxlan"}}}}'
"""Subnets from 10.5.200.0 on are for the tests: no host leases one by chance."""


@dataclass
class Node:
    """A host with netd, and one pod on it. `address` and `address6` are the pod's."""

    netns: NetnsMaker
    ns: Netns
    etcd: NetnsEtcd
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[Any] | None = None
    pod: Netns | None = None
    address: str = field(default="", init=False)
    address6: str = field(default="", init=False)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        options = {
            "etcd-endpoints": self.etcd.endpoint if self.ns.address else self.etcd.endpoint6,
            "subnet-file": self.folder / "subnet.env",
            "state-dir": self.folder,
            "node-name": self.ns.name,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        argv = [sys.executable, "-m", "netd.cli", "run", *given, *self.options]
        self.process = self.ns.popen(argv, log=self.log)

    @property
    def log(self) -> Path:
        return self.folder / "netd.log"

    def said(self, text: str) -> int:
        """How often the log has it."""
        return self.log.read_text().count(text) if self.log.exists() else 0

    def ready(self, timeout: float = 40) -> Node:
        eventually(self._is_ready, timeout)
        return self

    def _is_ready(self) -> bool:
        code, text = self.get("/readyz")
        assert code == 200, f"{text}\n{self.log.read_text()[-3000:]}"
        return True

    def get(self, path: str) -> tuple[int, str]:
        with inside(self.ns):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

    def metric(self, name: str) -> float:
        """A sample of /metrics; `name` with its labels as they stand there."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"{name}: no such sample")

    def has_peers(self, count: int) -> bool:
        assert self.metric("netd_peers") == count, self.log.read_text()[-3000:]
        return True

    @property
    def subnet(self) -> SubnetFile:
        return SubnetFile.parse((self.folder / "subnet.env").read_text())

    @property
    def value(self) -> str:
        """This host's lease as it stands in etcd; empty when it is not there."""
        return self.etcd.ctl("get", "--print-value-only", f"{PREFIX}/subnets/{self.subnet.subnets.key}").strip()

    def end(self, sig: signal.Signals) -> int:
        assert self.process is not None
        return self.ns.end(self.process, sig)

    def ip(self, command: str) -> Any:
        return json.loads(self.ns.run(f"ip -j -d {command}") or "[]")

    def add_pod(self) -> None:
        """What Docker does with the subnet file: a gateway on the host, the pod behind it."""
        pod, file = self.netns.add(self.ns.name.rpartition("-")[2] + "p"), self.subnet
        for ns in (
            self.ns,
            pod,
        ):  # or a new link's own address, by which neighbours are asked, waits for a second or two
            ns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
        self.netns.link(self.ns, "pod0", pod, "eth0", mtu=file.mtu)
        for subnet in file.subnets:
            gateway, address = subnet.network_address + 1, subnet.network_address + 2
            how = " nodad" if subnet.version == 6 else ""
            self.ns.run(f"ip address add {gateway}/{subnet.prefixlen} dev pod0{how}")
            pod.run(f"ip address add {address}/{subnet.prefixlen} dev eth0{how}")
            pod.run(f"ip route add default via {gateway}")
            if subnet.version == 4:
                self.address = str(address)
            else:
                self.address6 = str(address)
        self.pod = pod

    def pings(self, other: Node, count: int = 3, *, size: int = 0) -> bool:
        """Whether each echo request from this node's pod to the other's is answered, over every family they have.

        `size`: bytes of the whole IP packet, not to be fragmented.
        """
        assert self.pod is not None
        addresses = [each for each in (other.address, other.address6) if each]
        assert addresses
        return all(self.pod.ping(each, count=count, size=size) == count for each in addresses)

    def state(self) -> dict[str, Any]:
        """What the kernel holds of an IPv4 overlay."""
        link = self.ip("link show flannel.1")[0]
        return {
            "link": (link["mtu"], link["address"], "UP" in link["flags"]),
            "addresses": [
                address["local"]
                for shown in self.ip("-4 address show flannel.1")
                for address in shown.get("addr_info", ())
            ],
            "routes": sorted(
                (r["dst"], r["gateway"], r["dev"], r.get("protocol"), r["flags"])
                for r in self.ip(f"route show root {NETWORK}")
                if "gateway" in r
            ),
            "neighbours": sorted((n["dst"], n["lladdr"]) for n in self.ip("neigh show dev flannel.1 nud permanent")),
            "fdb": sorted(
                (f["mac"], f["dst"])
                for f in json.loads(self.ns.run("bridge -j fdb show dev flannel.1"))
                if "dst" in f and f["state"] == "permanent"
            ),
        }

    def is_as(self, before: dict[str, Any]) -> bool:
        """Whether `state` is this; for `eventually`, which then shows the difference."""
        assert self.state() == before
        return True


@dataclass
class Cluster:
    """Makes hosts with netd and a pod each, all ready; `folder` is the test's own."""

    netns: NetnsMaker
    etcd: NetnsEtcd
    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def __call__(
        self, count: int, *options: str, config: str = CONFIG, pods: bool = True, v4: bool = True, v6: bool = False
    ) -> list[Node]:
        """`config` is put into etcd, unless it is empty; `v4` and `v6` are the underlay's families."""
        if config:
            self.configure(config)
        new = [self.node(name, *options, v4=v4, v6=v6) for name in "abcdef"[len(self.nodes) :][:count]]
        for node in new:
            node.start()
        for node in new:
            node.ready()
            if pods:
                node.add_pod()
        self.acquainted()
        return new

    def node(self, name: str, *options: str, v4: bool = True, v6: bool = False, uplink: str = "eth0") -> Node:
        """One that is not started."""
        host = self.netns.host(name, v4=v4, v6=v6, uplink=uplink)
        node = Node(self.netns, host, self.etcd, self.folder / name, options)
        self.nodes.append(node)
        return node

    def configure(self, config: str) -> None:
        self.etcd.ctl("put", f"{PREFIX}/config", config)

    def acquainted(self) -> None:
        """Wait until every host has programmed all the others and is ready."""
        peers = len(self.nodes) - 1
        for node in self.nodes:
            eventually(partial(node.has_peers, peers))
            node.ready()
