"""Health-check node ports: whether this node has endpoints of a service whose clients must not be sent on.

Owns: one listener for each port and address, and one thread that serves them
all. A load balancer in front of a service with externalTrafficPolicy Local asks
each node here, and sends clients only to those that answer 200.

Invariants: no client can hold up another, whatever it sends or does not send
(nothing blocks, a client has a few seconds and a few kilobytes, and when there
are too many the one who came first goes); what cannot be listened at is said
once, counted, tried again, and never keeps the others from being served.
The answer is made when it is asked for, from what `set` gave last.
Source: kube-proxy's pkg/proxy/healthcheck/service_health.go; RFC 9112.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from podlane.runtime import metrics
from podlane.runtime.log import get_logger

CLIENTS = 256
"""Connections open at one time, of all ports together."""

CLIENT_SECONDS = 5.0
"""How long a client may take from its connection to the end of its request."""

REQUEST_BYTES = 8192
RETRY_INTERVAL = 5.0  # seconds between tries to listen where it failed
_WAIT = 1.0  # seconds a stop may go unnoticed
_NO_DESCRIPTORS = 0.05  # seconds to wait for somebody to close something

_REASONS = {200: "OK", 400: "Bad Request", 405: "Method Not Allowed", 503: "Service Unavailable"}

_FAILING = metrics.gauge("podlane_proxyd_health_check_ports_failing", "Health-check node ports not listened at.")


class ServiceHealth(NamedTuple):
    """A service with a health-check node port, and how many of its endpoints are on this node."""

    namespace: str
    name: str
    local_endpoints: int


class Failed(NamedTuple):
    """A port that cannot be listened at for now."""

    port: int
    service: ServiceHealth
    address: str
    why: str

    def __str__(self) -> str:
        return (
            f"listen on {_shown(self.address, self.port)} for {self.service.namespace}/{self.service.name}: {self.why}"
        )


Place = tuple[str, int]  # address and port


class HealthCheckServer:
    """`serve` is the body of one thread; `set` may be called from another, in the same network namespace.

    `healthy`: whether this proxy is; asked at each request, so it must be quick.
    """

    def __init__(
        self,
        healthy: Callable[[], bool],
        *,
        client_seconds: float = CLIENT_SECONDS,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        self._healthy = healthy
        self._client_seconds = client_seconds
        self._retry_interval = retry_interval
        self._log = get_logger("proxyd")
        self._lock = threading.Lock()  # of what follows up to _selector
        self._ports: dict[int, ServiceHealth] = {}
        self._addresses: tuple[str, ...] = ()
        self._listeners: dict[Place, socket.socket] = {}
        self._failures: dict[Place, str] = {}
        self._retry_at: float | None = None
        self._gone: list[socket.socket] = []
        self._come: list[tuple[int, socket.socket]] = []
        self._closed = False
        self._selector = selectors.DefaultSelector()  # the thread's alone, as are its clients
        self._clients: OrderedDict[int, _Client] = OrderedDict()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def set(self, ports: Mapping[int, ServiceHealth], addresses: Sequence[str] = ()) -> list[Failed]:
        """Listen at exactly these ports, and answer with these numbers; returns those that cannot be had.

        `addresses`: where to listen, the node-port addresses; none means all of the host's. The same again changes
        nothing but tries those that failed.
        """
        with self._lock:
            if self._closed:
                return []
            self._ports = dict(ports)
            self._addresses = tuple(addresses) or _everywhere()
            self._listen()
            failures = self._failed()
        self._wake()
        return failures

    def failures(self) -> list[Failed]:
        """What cannot be listened at, as of the last try."""
        with self._lock:
            return self._failed()

    def serve(self, stop: threading.Event) -> None:
        """Answer until `stop`: the body of one thread."""
        while not stop.is_set():
            self._take_over()
            for key, _ in self._selector.select(self._pause()):
                if key.fileobj is self._wake_read:
                    with suppress(BlockingIOError):
                        self._wake_read.recv(4096)
                elif isinstance(key.data, _Client):
                    # one that was closed meanwhile, for another that came, is not there any more
                    if self._clients.get(key.fd) is key.data:
                        self._go_on(key.data)
                else:
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
            self._send_away_the_slow()

    def close(self) -> None:
        """Close everything, after `serve` has ended. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._ports = {}
            self._listen()
        self._take_over()
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    # --- listeners, under the lock ---------------------------------------------------------

    def _failed(self) -> list[Failed]:
        return [
            Failed(port, self._ports[port], address, why) for (address, port), why in sorted(self._failures.items())
        ]

    def _listen(self) -> None:
        wanted = {(address, port) for port in self._ports for address in self._addresses}
        # first close: the same port may be wanted at all addresses instead of one
        for place in self._listeners.keys() - wanted:
            gone = self._listeners.pop(place)
            self._gone.append(gone)
            # the thread closes it; until then nobody else could have the port
            with suppress(OSError):
                gone.shutdown(socket.SHUT_RD)
        self._failures = {place: why for place, why in self._failures.items() if place in wanted}
        for place in sorted(wanted - self._listeners.keys()):
            try:
                made = _listener(*place)
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                if self._failures.get(place) != why:
                    self._failures[place] = why
                    failed = Failed(place[1], self._ports[place[1]], place[0], why)
                    self._log.warning("health check not served", error=str(failed), retry=self._retry_interval)
            else:
                self._listeners[place] = made
                self._come.append((place[1], made))
                if self._failures.pop(place, None) is not None:
                    self._log.info("health check served again", address=place[0], port=place[1])
        _FAILING.set(len({port for _, port in self._failures}))
        self._retry_at = time.monotonic() + self._retry_interval if self._failures else None

    # --- the thread ------------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._wake_write.send(b"\0")

    def _take_over(self) -> None:
        """Follow what `set` opened and closed."""
        with self._lock:
            if self._retry_at is not None and time.monotonic() >= self._retry_at:
                self._listen()
            # first who came: it may be among those that went already
            for port, listener in self._come:
                self._selector.register(listener, selectors.EVENT_READ, port)
            for listener in self._gone:
                self._selector.unregister(listener)
                listener.close()
            self._come.clear()
            self._gone.clear()

    def _pause(self) -> float:
        moments = [client.deadline for client in self._clients.values()][:1]
        with self._lock:
            moments += [] if self._retry_at is None else [self._retry_at]
        return min(_WAIT, max(0.0, min(moments) - time.monotonic())) if moments else _WAIT

    def _accept(self, listener: socket.socket, port: int) -> None:
        try:
            made, _ = listener.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                # it stays in the queue, and we would come back for it at once and for ever
                if self._clients:
                    self._drop(next(iter(self._clients.values())))
                time.sleep(_NO_DESCRIPTORS)
            return  # else it went away again, or the listener did
        made.setblocking(False)
        if len(self._clients) >= CLIENTS:
            self._drop(next(iter(self._clients.values())))
        client = _Client(made, port, time.monotonic() + self._client_seconds)
        self._clients[made.fileno()] = client
        self._selector.register(made, selectors.EVENT_READ, client)

    def _go_on(self, client: _Client) -> None:
        try:
            if client.answer is None:
                data = client.socket.recv(4096)
                client.request += data
                status = read_request(client.request)
                if status is None and data:
                    return
                client.answer = self._answer(client.port, status or (400, True))
            sent = client.socket.send(client.answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        client.answer = (client.answer or b"")[sent:]
        if client.answer:
            self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
            return
        self._drop(client)

    def _answer(self, port: int, request: tuple[int, bool]) -> bytes:
        status, body_too = request
        with self._lock:
            service = self._ports.get(port)
        if service is None or status != 200:
            return render(status if status != 200 else 503, b"", body_too=body_too)
        well = _ask(self._healthy)
        return answer(service, healthy=well, body_too=body_too)

    def _send_away_the_slow(self) -> None:
        now = time.monotonic()
        # all have the same time, so the first to come is the first whose time is up
        while self._clients and (client := next(iter(self._clients.values()))).deadline <= now:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.socket.fileno(), None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(client.socket)
        client.socket.close()


class _Client:
    def __init__(self, made: socket.socket, port: int, deadline: float) -> None:
        self.socket = made
        self.port = port
        self.deadline = deadline
        self.request = b""
        self.answer: bytes | None = None


# --- pure ------------------------------------------------------------------------------


def read_request(data: bytes) -> tuple[int, bool] | None:
    """(status to begin with, whether the answer has a body) once the request is complete or hopeless; None before."""
    head = data.lstrip(b"\r\n")
    end = min((at for at in (head.find(b"\r\n\r\n"), head.find(b"\n\n")) if at >= 0), default=-1)
    if end < 0:
        return (400, True) if len(data) > REQUEST_BYTES else None
    words = head.split(b"\n", 1)[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return 400, True
    if words[0] not in {b"GET", b"HEAD"}:
        return 405, True
    return 200, words[0] == b"GET"


def answer(service: ServiceHealth, *, healthy: bool, body_too: bool = True) -> bytes:
    """The whole answer of a port: 200 when clients may be sent here, else 503."""
    document = {
        "service": {"namespace": service.namespace, "name": service.name},
        "localEndpoints": service.local_endpoints,
        "serviceProxyHealthy": healthy,
    }
    status = 200 if healthy and service.local_endpoints > 0 else 503
    headers = {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(service.local_endpoints),
    }
    return render(status, json.dumps(document).encode(), headers, body_too=body_too)


def render(status: int, body: bytes, headers: Mapping[str, str] | None = None, *, body_too: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    if status == 405:
        lines.append("Allow: GET, HEAD")
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + (body if body_too else b"")


def _everywhere() -> tuple[str, ...]:
    """All addresses of the families this kernel has."""
    return ("0.0.0.0", "::") if Path("/proc/net/if_inet6").exists() else ("0.0.0.0",)


def _listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # the other family has its own
        made.bind((address, port))
        made.listen(128)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _ask(healthy: Callable[[], bool]) -> bool:
    try:
        return healthy()
    except Exception as error:  # a check that raises has failed, and does not end the thread
        get_logger("proxyd").error("health check failed", error=repr(error), exc_info=error)
        return False


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
