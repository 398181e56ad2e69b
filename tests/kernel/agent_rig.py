"""One node as it is: etcd, a real dockerd and the agent's own process in one namespace, the test outside of it."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dockerd_process import IMAGE, Dockerd, dockerd
from reports_leader import carrying_over

from podlane.api.meta import get_condition, is_pod_ready
from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    ClusterConfig,
    Condition,
    Container,
    HTTPGetAction,
    Node,
    ObjectMeta,
    Pod,
    PodSpec,
    Probe,
)
from podlane.errors import NotFound
from podlane.store.bulk import Binding, bind
from podlane.store.config import StoreConfig
from podlane.store.etcd import EtcdStore
from podlane.store.registry import Registry

TOKEN = "cluster-token"
SERVE = ("httpd", "-f", "-p", "8080", "-h", "/bin")
AGENT_OPTIONS = {
    "--node-name": "n1",
    "--node-ip": "127.0.0.1",
    "--agent-port": "10250",
    "--drain-delay": "0.2",
    "--capacity": "cpu=2,memory=1Gi",
    "--image-gc": "100,99",  # the disk is the machine's, and may be fuller than a server's
}


def eventually(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (told := condition()):
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.05)
    return told


class Door:
    """A port on our own loopback that leads to a port inside a namespace."""

    def __init__(self, netns: str, address: tuple[str, int]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, args=(netns, address), daemon=True).start()

    def _serve(self, netns: str, address: tuple[str, int]) -> None:
        with open(f"/run/netns/{netns}") as namespace:  # of this thread only; sockets stay where they were made
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(address, timeout=5)
                far.settimeout(None)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Rig:
    """One node: etcd, dockerd and agent in one namespace, the test outside of it."""

    def __init__(self, netns: Any, etcd: Any, engine: Dockerd, folder: Path) -> None:
        self.netns, self.etcd, self.engine, self.folder = netns, etcd, engine, folder
        self.door = Door(netns.name, (netns.address, 2379))
        self.registry = Registry(EtcdStore(StoreConfig(endpoints=(self.door.endpoint,))))
        self.subnet_file = folder / "subnet.env"
        self.agent: subprocess.Popen[Any] | None = None

    def start_agent(self, **more: str) -> None:
        """`more` as `docker_timeout="1"` for `--docker-timeout=1`."""
        options = {
            **AGENT_OPTIONS,
            **{f"--{name.replace('_', '-')}": value for name, value in more.items()},
            "--etcd-endpoints": self.etcd.endpoint,
            "--docker-host": self.engine.url,
            "--subnet-file": str(self.subnet_file),
            "--state-dir": str(self.folder / "state"),
        }
        argv = [sys.executable, "-c", "from scheduler.agent.cli import agent; agent()"]
        self.agent = self.netns.popen(
            [*argv, *(f"{name}={value}" for name, value in options.items())], log=self.folder / "agent.log"
        )

    def end_agent(self, sig: signal.Signals = signal.SIGTERM) -> int:
        assert self.agent is not None
        return int(self.netns.end(self.agent, sig, 20))

    def bind(self, name: str, *containers: Container, **spec: Any) -> Pod:
        spec = {"termination_grace_period_seconds": 2, **spec}
        pod = self.registry.create(
            Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=PodSpec(containers=containers, **spec))
        )
        binding = Binding("default", name, "n1", pod.metadata.resource_version)
        assert bind(self.registry, [binding]) == [None]
        return pod

    def get(self, name: str) -> Pod:
        return self.registry.get(Pod, "default", name)

    def ready(self, name: str) -> bool:
        return is_pod_ready(self.get(name))

    def gone(self, name: str) -> bool:
        try:
            self.get(name)
        except NotFound:
            return True
        return False

    def docker(self, *argv: str, check: bool = True) -> list[str]:
        done = subprocess.run(
            ["docker", "-H", self.engine.url, *argv], check=False, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, f"docker {' '.join(argv)}: {done.stderr}"
        return done.stdout.split()

    def containers(self) -> list[str]:
        return sorted(self.docker("ps", "-q", "--no-trunc"))

    def fetch(self, address: str, path: str = "/sh") -> bool:
        return bool(
            self.netns.ok(["timeout", "3", "busybox", "wget", "-q", "-O", "/dev/null", f"http://{address}:8080{path}"])
        )

    def client(self, script: str) -> str:
        """Run Python in the namespace with an AgentClient `c`."""
        known = self.registry.get(Node, "", "n1").metadata.annotations[AGENT_CERTIFICATE_ANNOTATION]
        head = (
            "from scheduler.agent.client import *; from scheduler.agent.trust import Pinned;"
            f"c = AgentClient('https://127.0.0.1:10250', Pinned({TOKEN!r}, {known!r}));"
        )
        return str(self.netns.run([sys.executable, "-c", head + script]))


@contextlib.contextmanager
def one_node(netns: Any, etcd: Any, folder: Path, *options: str, data_size: str = "") -> Iterator[Rig]:
    """`options` are dockerd's; `data_size` as in "64m" makes its disk a small one."""
    host = netns.underlay  # etcd's own namespace: one node needs no second
    with dockerd(host.name, *options, data_size=data_size) as engine:
        rig = Rig(host, etcd, engine, folder)
        try:
            with carrying_over(rig.registry):
                yield rig
        finally:
            if rig.agent is not None:
                rig.end_agent(signal.SIGKILL)
            engine.start()  # whatever a failed test left of it: its containers must go
            for identity in rig.docker("ps", "-aq"):
                rig.docker("rm", "-f", identity)
            rig.registry.store.close()
            rig.door.close()


SUBNET_ENV = "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n"


def web(**changes: Any) -> Container:
    probe = Probe(http_get=HTTPGetAction(port=8080, path="/sh"))
    given = {"name": "web", "image": IMAGE, "command": SERVE, "image_pull_policy": "Never", "readiness_probe": probe}
    return Container(**{**given, **changes})


def begin(rig: Rig, **options: str) -> None:
    rig.registry.init_cluster(ClusterConfig(agent_token=TOKEN, node_lease_seconds=4))
    rig.subnet_file.write_text(SUBNET_ENV)
    rig.start_agent(**options)


def node_condition(rig: Rig) -> Condition | None:
    try:
        return get_condition(rig.registry.get(Node, "", "n1").status.conditions, "Ready")
    except NotFound:
        return None


def node_ready(rig: Rig) -> bool:
    condition = node_condition(rig)
    return condition is not None and condition.status == "True"
