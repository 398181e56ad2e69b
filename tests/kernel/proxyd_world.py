"""One node with pods, a neighbour behind it and a client outside, and proxyd's sync inside the node.

    client .64.1 ── eth0 node .64.11 ── cbr0 10.5.1.1/24 ── pod1 .2, pod2 .3, pod3 .4
                           └── eth1 172.16.0.1 ── far 172.16.0.2, its pod address 10.5.2.2

All of it in IPv6, too (proxyd_nets.py). Servers are sockets made inside the
pods, answered by one thread of the test process.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podlane.api.types import EndpointSlice, Service
from podlane.runtime.clock import SystemClock
from podlane.runtime.runner import NotReady
from proxyd.conntrack import KernelConntrack
from proxyd.hairpin import Hairpin
from proxyd.host import KernelHost
from proxyd.nft import KernelNft
from proxyd.plane import RETIRE_AFTER
from proxyd.proxy import Outlets, Proxy
from proxyd.source import View
from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import FAR, NETS, POD1, POD2, POD3, V4, V6, Net

_FREEBIND = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}


class Store:
    """A Source that holds what the test put in."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: dict[str, EndpointSlice] = {}
        self.nets: Sequence[Net] = NETS
        self.zone = ""
        self.internal_ips: tuple[str, ...] = (V4.node, V6.node)

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            into: dict[str, Any] = self.services if isinstance(each, Service) else self.slices
            into[f"default/{each.metadata.name}"] = each

    def drop(self, each: Service) -> None:
        del self.services[f"default/{each.metadata.name}"]

    def take(self, **_: bool) -> View:
        """Always everything, which is never wrong."""
        return View(
            True,
            dict(self.services),
            dict(self.slices),
            tuple(net.pod_network for net in self.nets),
            tuple(net.service_range for net in self.nets),
            zone=self.zone,
            internal_ips=self.internal_ips,
        )


class NoConntrack:
    """For showing what happens without the clean-up."""

    def clean(self, *_: Any) -> int:
        return 0

    def close(self) -> None: ...


class World:
    """Built by the `world` fixture; `sync` is proxyd."""

    def __init__(self, netns: Any, node: Any = None, client: Any = None, suffix: str = "") -> None:
        """`node` and `client`, if given, are on one network already and have their addresses.

        `suffix` tells the namespaces of two worlds of one test apart.
        """
        self.netns, self._suffix = netns, suffix
        self.store = Store()
        self.left_out: list[str] = []
        self._sockets: list[socket.socket] = []
        self._stop = threading.Event()
        self._server = _Server(self._stop)
        self._proxies: list[tuple[KernelNft, Any, Hairpin]] = []
        self.node, self.client = node or self._add("node"), client or self._add("client")
        self.far = self._add("far")
        self.pods = {name: self._add(name) for name in (POD1, POD2, POD3)}
        self.pods[FAR] = self.far
        if node is None:
            netns.link(self.node, "eth0", self.client, "eth0")
            _batch(self.node, [f"address add {net.node}/{net.wide} dev eth0 nodad" for net in NETS])
            _batch(self.client, [f"address add {net.client}/{net.wide} dev eth0 nodad" for net in NETS])
        self._wire()
        self.proxy = self.start()

    def _add(self, name: str) -> Any:
        ns = self.netns.add(name + self._suffix)
        with inside(ns):
            for setting in (
                "ipv6/conf/default/accept_dad",  # or its links' own addresses wait for a second or two
                # the client's packets leave by the link they came by; a redirect uses up what is allowed of ICMP
                "ipv4/conf/all/send_redirects",
                "ipv4/conf/default/send_redirects",
            ):
                Path("/proc/sys/net", setting).write_text("0")
        return ns

    def _wire(self) -> None:
        node = self.node
        self.netns.link(node, "eth1", self.far, "eth0")
        batch = ["link add cbr0 type bridge", "link set cbr0 up"]
        for number, name in enumerate((POD1, POD2, POD3), 1):
            self.netns.link(self.pods[name], "eth0", node, f"v{number}")
            batch.append(f"link set v{number} master cbr0")
        for net in NETS:
            batch += [
                f"address add {net.bridge}/{net.wide} dev cbr0 nodad",
                f"address add {net.node_elsewhere}/{net.wide} dev eth1 nodad",
                f"route add {net.lan(net.pods[FAR])} via {_far_link(net)}",
                # by a route as a default route would be, but no service address is covered
                f"route add {net.lan(net.source(0))} via {net.client}",
                f"route add {net.lan(net.external)} via {net.client}",
            ]
        _batch(node, batch)
        for name in (POD1, POD2, POD3):
            lines = [f"address add {net.pods[name]}/{net.wide} dev eth0 nodad" for net in NETS]
            _batch(self.pods[name], [*lines, *(f"route add default via {net.bridge}" for net in NETS)])
        far, client = [], []
        for net in NETS:
            far += [
                f"address add {_far_link(net)}/{net.wide} dev eth0 nodad",
                f"address add {net.pods[FAR]}/{net.family.width * 8} dev lo" + " nodad" * (net is V6),
                f"route add default via {net.node_elsewhere}",
            ]
            client += [
                f"route add {net.service_range} via {net.node}",
                f"route add local {net.lan(net.source(0))} dev lo",
            ]
            client += [f"route add {net.lan(net.external)} via {net.node}"]
        _batch(self.far, far)
        _batch(self.client, client)

    def start(self, conntrack: Any = None, *, tcp_be_liberal: bool = True) -> Proxy:
        """A new proxyd process, as far as the kernel can tell."""
        with inside(self.node):
            nft, self.hairpin = KernelNft(), Hairpin(lambda: [net.pod_network for net in self.store.nets])
            conntrack = conntrack or KernelConntrack()
        self._proxies.append((nft, conntrack, self.hairpin))
        self.proxy = Proxy(
            source=self.store,
            nft=nft,
            conntrack=conntrack,
            host=KernelHost(tcp_be_liberal=tcp_be_liberal),
            node="node",
            clock=SystemClock(),
            trigger_after=lambda _: None,
            outlets=Outlets(left_out=lambda _service, message: self.left_out.append(message)),
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

    def repair(self) -> None:
        """What the daemon does when somebody changed the ruleset."""
        with inside(self.node):
            with contextlib.suppress(NotReady):
                self.proxy.verify()
            self.proxy.sync()

    def close(self) -> None:
        self._stop.set()
        self._server.join()
        for each in self._sockets:
            each.close()
        for parts in self._proxies:
            for part in parts:
                part.close()

    # --- servers and clients -------------------------------------------------------------

    def socket(
        self, ns: Any, kind: int, timeout: float = 2.0, af: int = socket.AF_INET, proto: int = 0
    ) -> socket.socket:
        with inside(ns):
            made = socket.socket(af, kind, proto)
        made.settimeout(timeout)
        self._sockets.append(made)
        return made

    def serve(self, *pods: str, tcp: int | None = 8080, udp: int | None = None) -> None:
        """Pods that answer each message with their own name and the caller's address, in both families."""
        for pod in pods:
            if tcp is not None:
                listener = self.socket(self.pods[pod], socket.SOCK_STREAM, af=socket.AF_INET6)
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind(("::", tcp))
                listener.listen(256)
                self._server.add(listener, pod)
            for net in NETS if udp is not None else ():
                receiver = self.socket(self.pods[pod], socket.SOCK_DGRAM, af=net.af)
                receiver.bind((net.pods[pod], udp))
                self._server.add(receiver, pod)

    def _begin(self, ns: Any, kind: int, ip: str, timeout: float, source: str) -> socket.socket:
        af = socket.AF_INET6 if ":" in ip else socket.AF_INET
        made = self.socket(ns, kind, timeout, af)
        if source:
            made.setsockopt(*_FREEBIND[af], 1)
            made.bind((source, 0))
        return made

    def connect(
        self, ns: Any, ip: str = V4.vip, port: int = 80, timeout: float = 2.0, source: str = ""
    ) -> socket.socket:
        made = self._begin(ns, socket.SOCK_STREAM, ip, timeout, source)
        try:
            made.connect((ip, port))
        except OSError:
            made.close()
            raise
        return made

    def call(
        self, ns: Any, ip: str = V4.vip, port: int = 80, timeout: float = 2.0, source: str = ""
    ) -> tuple[str, str]:
        """One TCP connection: (who answered, the address it saw). Raises OSError."""
        made = self.connect(ns, ip, port, timeout, source)
        try:
            return ask(made)
        finally:
            made.close()

    def calls(self, ns: Any, count: int, **how: Any) -> Counter[str]:
        return Counter(self.call(ns, **how)[0] for _ in range(count))

    def outcome(self, ns: Any, ip: str, port: int = 80, source: str = "") -> str:
        """Who answers a TCP connection, or "refused", or "timeout" (after 0.4 s)."""
        try:
            return self.call(ns, ip, port, 0.4, source)[0]
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "timeout"

    def flow(self, ns: Any, ip: str = V4.vip, port: int = 53, timeout: float = 0.5, source: str = "") -> socket.socket:
        """A UDP flow: a connected socket, to be used with `ask`."""
        made = self._begin(ns, socket.SOCK_DGRAM, ip, timeout, source)
        made.connect((ip, port))
        return made

    def nft_script(self, script: str) -> str:
        return str(self.node.run(["nft", "-f", "-"], stdin=script))


class _Server:
    """One thread that answers at every socket it was given."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._poll = select.epoll()
        self._at: dict[int, tuple[socket.socket, str, str]] = {}  # socket, pod, caller ("" for a listener)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(5)
        self._poll.close()

    def add(self, made: socket.socket, pod: str, caller: str = "") -> None:
        made.setblocking(False)
        self._at[made.fileno()] = (made, pod, caller)
        self._poll.register(made, select.EPOLLIN)

    def _run(self) -> None:
        while not self._stop.is_set():
            for fd, _ in self._poll.poll(0.1):
                made, pod, caller = self._at[fd]
                with contextlib.suppress(BlockingIOError):
                    if made.type == socket.SOCK_DGRAM:
                        with contextlib.suppress(OSError):
                            _, sender = made.recvfrom(64)
                            made.sendto(f"{pod} {sender[0]}".encode(), sender)
                    elif caller:
                        self._answer(made, pod, caller)
                    else:
                        accepted, (address, *_) = made.accept()
                        self.add(accepted, pod, address.removeprefix("::ffff:"))

    def _answer(self, made: socket.socket, pod: str, caller: str) -> None:
        try:
            data = made.recv(64)
            if data:
                made.sendall(f"{pod} {caller}".encode())
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            del self._at[made.fileno()]
            self._poll.unregister(made)
            made.close()


def ask(made: socket.socket) -> tuple[str, str]:
    """Send a message and return (who answered, the address it saw). Raises OSError."""
    made.sendall(b"?")
    name, _, seen = made.recv(64).decode().partition(" ")
    if not name:
        raise ConnectionError("closed without an answer")
    return name, seen


def _far_link(net: Net) -> str:
    """far's address towards the node."""
    return f"{net.node_elsewhere[:-1]}2"


def _batch(ns: Any, lines: Sequence[str]) -> None:
    ns.run(["ip", "-batch", "-"], stdin="\n".join(lines))
