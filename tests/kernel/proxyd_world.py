"""One node with pods, a neighbour behind it and a client outside, and proxyd's sync inside the node.

    client 192.168.64.1 ── eth0 node 192.168.64.11 ── cbr0 10.5.1.1/24 ── pod1 .2, pod2 .3, pod3 .4
                                     └── eth1 172.16.0.1 ── far 172.16.0.2, its pod address 10.5.2.2

Servers are threads of the test process on sockets made inside the pods.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from podlane.api.types import (
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from podlane.runtime.clock import SystemClock
from proxyd.conntrack import KernelConntrack
from proxyd.hairpin import Hairpin
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.proxy import RETIRE_AFTER, Proxy
from proxyd.source import View

VIP = "10.96.0.1"
SERVICE_RANGE = "10.96.0.0/16"
POD_NETWORK = "10.5.0.0/16"
NODE, CLIENT = "192.168.64.11", "192.168.64.1"
POD1, POD2, POD3, FAR = "10.5.1.2", "10.5.1.3", "10.5.1.4", "10.5.2.2"

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def inside(ns: Any) -> Iterator[None]:
    """Move this thread into the namespace for a while."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(ns.path, os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        if libc.setns(home, _CLONE_NEWNET):
            os.abort()  # this thread would go on in a namespace that is about to go
        os.close(home)
        os.close(there)


def service(*ports: tuple[str, int], name: str = "web", ip: str = VIP) -> Service:
    """`ports`: (protocol, port); the port's name is both."""
    return Service(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=ServiceSpec(
            cluster_ip=ip,
            ports=tuple(ServicePort(name=f"{p}-{n}".lower(), port=n, protocol=p) for p, n in ports),  # type: ignore[arg-type]
        ),
    )


def endpoints(addresses: Sequence[str], *ports: tuple[str, int, int], name: str = "web") -> EndpointSlice:
    """`ports`: (protocol, the service's port, the pod's port)."""
    return EndpointSlice(
        metadata=ObjectMeta(name=f"{name}-1", namespace="default", labels={SERVICE_NAME_LABEL: name}),
        endpoints=tuple(
            Endpoint(
                addresses=(address,),
                conditions=EndpointConditions(ready=True, serving=True),
                node_name="far" if address == FAR else "node",
            )
            for address in addresses
        ),
        ports=tuple(EndpointPort(name=f"{p}-{n}".lower(), port=t, protocol=p) for p, n, t in ports),  # type: ignore[arg-type]
    )


TCP = ("TCP", 80, 8080)
UDP = ("UDP", 53, 5353)


def web(addresses: Sequence[str], *ports: tuple[str, int, int]) -> tuple[Service, EndpointSlice]:
    """The service and its slice; by default TCP 80 to 8080."""
    ports = ports or (TCP,)
    return service(*((p, n) for p, n, _ in ports)), endpoints(addresses, *ports)


class Store:
    """A Source that holds what the test put in."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: dict[str, EndpointSlice] = {}

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            into: dict[str, Any] = self.services if isinstance(each, Service) else self.slices
            into[f"default/{each.metadata.name}"] = each

    def drop(self, each: Service) -> None:
        del self.services[f"default/{each.metadata.name}"]

    def take(self, **_: bool) -> View:
        """Always everything, which is never wrong."""
        return View(True, dict(self.services), dict(self.slices), (POD_NETWORK,), (SERVICE_RANGE,))


class NoConntrack:
    """For showing what happens without the clean-up."""

    def clean(self, *_: Any) -> int:
        return 0

    def close(self) -> None: ...


class World:
    """Built by the `world` fixture; `sync` is proxyd."""

    def __init__(self, netns: Any, node: Any = None, client: Any = None) -> None:
        """`node` and `client`, if given, are on one network already and have their addresses."""
        self.netns = netns
        self.store = Store()
        self._sockets: list[socket.socket] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._proxies: list[tuple[KernelNft, Any, Hairpin]] = []
        self.node, self.client = node or netns.add("node"), client or netns.add("client")
        self.far = netns.add("far")
        self.pods = {address: netns.add(f"pod{i}") for i, address in enumerate((POD1, POD2, POD3), 1)}
        self.pods[FAR] = self.far
        if node is None:
            netns.link(self.node, "eth0", self.client, "eth0")
            _batch(self.node, [f"address add {NODE}/24 dev eth0"])
            _batch(self.client, [f"address add {CLIENT}/24 dev eth0"])
        self._wire()
        self.proxy = self.start()

    def _wire(self) -> None:
        netns, node = self.netns, self.node
        netns.link(node, "eth1", self.far, "eth0")
        batch = [
            "link add cbr0 type bridge",
            "address add 10.5.1.1/24 dev cbr0",
            "link set cbr0 up",
            "address add 172.16.0.1/24 dev eth1",
            "route add 10.5.2.0/24 via 172.16.0.2",
        ]
        for number, address in enumerate((POD1, POD2, POD3), 1):
            pod = self.pods[address]
            netns.link(pod, "eth0", node, f"v{number}")
            batch.append(f"link set v{number} master cbr0")
            _batch(pod, [f"address add {address}/24 dev eth0", "route add default via 10.5.1.1"])
        _batch(node, batch)
        _batch(self.client, [f"route add {SERVICE_RANGE} via {NODE}"])
        _batch(
            self.far,
            ["address add 172.16.0.2/24 dev eth0", f"address add {FAR}/32 dev lo", "route add default via 172.16.0.1"],
        )

    def start(self, conntrack: Any = None) -> Proxy:
        """A new proxyd process, as far as the kernel can tell."""
        with inside(self.node):
            nft, self.hairpin = KernelNft(), Hairpin(lambda: [POD_NETWORK])
            conntrack = conntrack or KernelConntrack()
        self._proxies.append((nft, conntrack, self.hairpin))
        self.proxy = Proxy(
            source=self.store,
            nft=nft,
            conntrack=conntrack,
            host=KernelHost(),
            node="node",
            clock=SystemClock(),
            trigger_after=lambda _: None,
        )
        return self.proxy

    @property
    def nft(self) -> KernelNft:
        return self._proxies[-1][0]

    @property
    def conntrack(self) -> KernelConntrack:
        return self._proxies[-1][1]

    def sync(self, *objects: Service | EndpointSlice, settle: bool = False) -> None:
        """Store the objects and sync; with `settle` also what is left for later."""
        self.store.put(*objects)
        with inside(self.node):
            self.proxy.sync()
            self.hairpin.sync()
            if settle:
                time.sleep(RETIRE_AFTER + 0.05)
                self.proxy.sync()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for each in self._sockets:
            each.close()
        for parts in self._proxies:
            for part in parts:
                part.close()

    # --- servers and clients -------------------------------------------------------------

    def socket(self, ns: Any, kind: int, timeout: float = 2.0) -> socket.socket:
        with inside(ns):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(timeout)
        self._sockets.append(made)
        return made

    def serve(self, *addresses: str, tcp: int | None = 8080, udp: int | None = None) -> None:
        """Pods that answer each message with their own address and the caller's."""
        for address in addresses:
            if tcp is not None:
                listener = self.socket(self.pods[address], socket.SOCK_STREAM)
                listener.bind(("0.0.0.0", tcp))
                listener.listen(256)
                self._thread(self._serve_tcp, listener, address)
            if udp is not None:
                receiver = self.socket(self.pods[address], socket.SOCK_DGRAM)
                receiver.bind((address, udp))
                self._thread(self._serve_udp, receiver, address)

    def _thread(self, body: Any, *args: Any) -> None:
        thread = threading.Thread(target=body, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _serve_tcp(self, listener: socket.socket, name: str) -> None:
        open_ones: dict[int, tuple[socket.socket, str]] = {}
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not self._stop.is_set():
            for fd, _ in poll.poll(100):
                if fd == listener.fileno():
                    made, (caller, _) = listener.accept()
                    open_ones[made.fileno()] = (made, caller)
                    poll.register(made, select.POLLIN)
                    continue
                made, caller = open_ones[fd]
                try:
                    data = made.recv(64)
                    if data:
                        made.sendall(f"{name} {caller}".encode())
                except OSError:
                    data = b""
                if not data:
                    poll.unregister(fd)
                    open_ones.pop(fd)[0].close()
        for made, _ in open_ones.values():
            made.close()

    def _serve_udp(self, receiver: socket.socket, name: str) -> None:
        receiver.settimeout(0.1)
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                _, caller = receiver.recvfrom(64)
                receiver.sendto(f"{name} {caller[0]}".encode(), caller)

    def connect(self, ns: Any, port: int = 80, ip: str = VIP, timeout: float = 2.0) -> socket.socket:
        made = self.socket(ns, socket.SOCK_STREAM, timeout)
        made.connect((ip, port))
        return made

    def call(self, ns: Any, port: int = 80, ip: str = VIP, timeout: float = 2.0) -> tuple[str, str]:
        """One TCP connection: (who answered, the address it saw). Raises OSError."""
        made = self.connect(ns, port, ip, timeout)
        try:
            return ask(made)
        finally:
            made.close()

    def calls(self, ns: Any, count: int, **how: Any) -> Counter[str]:
        return Counter(self.call(ns, **how)[0] for _ in range(count))

    def flow(self, ns: Any, port: int = 53, ip: str = VIP, timeout: float = 0.5) -> socket.socket:
        """A UDP flow: a connected socket, to be used with `ask`."""
        made = self.socket(ns, socket.SOCK_DGRAM, timeout)
        made.connect((ip, port))
        return made

    def nft_script(self, script: str) -> str:
        return str(self.node.run(["nft", "-f", "-"], stdin=script))


def ask(made: socket.socket) -> tuple[str, str]:
    """Send a message and return (who answered, the address it saw). Raises OSError."""
    made.sendall(b"?")
    name, _, seen = made.recv(64).decode().partition(" ")
    if not name:
        raise ConnectionError("closed without an answer")
    return name, seen


def _batch(ns: Any, lines: Sequence[str]) -> None:
    ns.run(["ip", "-batch", "-"], stdin="\n".join(lines))
