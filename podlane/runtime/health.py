"""What a daemon says of itself over HTTP: /metrics, /healthz, /livez, /readyz, and documents of its own.

Owns: the checks and the small server that shows them. Invariants: a check that
raises counts as failed and never harms the server; the server uses at most a
handful of threads and gives each client a few seconds, so nobody can hold the
daemon up by asking. Forms as in Kubernetes: one `[+]name ok` or
`[-]name failed: reason` a line, status 200 or 503. A daemon whose probes expect
another form gives it by `add_report`.

Whom it answers: everyone who reaches the address. With `local_only`, metrics and
documents, which tell what a node runs, are for clients on the node itself, and
only the checks, which load balancers ask for, are for everyone.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.log import get_logger

Check = Callable[[], str | None]
"""Answers None when all is well, else why not. Must be quick: it reads state, it does no I/O."""

Provider = Callable[[], bytes]
"""Makes a document's content, each time it is asked for, in a thread of the server's. Must be quick, as a check."""


class Answer(NamedTuple):
    """What is said to a request."""

    status: int
    content_type: str
    body: bytes


Reporter = Callable[[Mapping[str, str]], Answer]
"""Makes the whole answer of a path of checks from those that fail and why. Must be quick, as a check."""

_CHECKED = ("/healthz", "/livez", "/readyz")
_OWN = ("/metrics", *_CHECKED)
_TEXT = "text/plain; charset=utf-8"
_CLIENT_SECONDS = 5.0
_CLIENTS = 8

_log = get_logger("health")


class Checks:
    """Named checks, in the order they were added. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checks: dict[str, Check] = {}

    def add(self, name: str, check: Check) -> None:
        """Add a check, or replace the one of that name."""
        with self._lock:
            self._checks[name] = check

    def run(self) -> dict[str, str | None]:
        """Ask every check: name to None (well) or the reason why not."""
        with self._lock:
            checks = dict(self._checks)
        return {name: _ask(check) for name, check in checks.items()}

    def failing(self) -> dict[str, str]:
        """Return the reasons of those that fail."""
        return {name: reason for name, reason in self.run().items() if reason is not None}


class HealthServer:
    """Serves from construction on; `close` ends it.

    Port 0 takes any free port, which `port` then tells; None serves nothing.
    `ready` are readiness checks that hold from the first request on.
    `local_only`: answer metrics and documents to loopback clients alone.
    Raises PodlaneError when the address cannot be had.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = 0,
        registry: CollectorRegistry = metrics.REGISTRY,
        *,
        ready: Checks | None = None,
        local_only: bool = False,
    ) -> None:
        self.ready = ready or Checks()
        self.health = Checks()
        self.registry = registry
        self.host = host
        self.port: int | None = None
        self._local_only = local_only
        self._documents: dict[str, tuple[Provider, str]] = {}
        self._reports: dict[str, Reporter] = {}
        self._server: _Server | None = None
        if port is None:
            return
        try:
            self._server = _Server(host, port, self)
        except (OSError, OverflowError) as error:
            raise PodlaneError(f"listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve, name="health", daemon=True).start()
        _log.info("serving metrics and health", address=host, port=self.port)

    def add_document(self, path: str, provider: Provider, content_type: str = "application/json") -> None:
        """Serve what `provider` returns under `path`, for example `/status`. Answers 500 when it raises."""
        if not path.startswith("/") or path in _OWN:
            raise ValueError(f"add document: expected a path that starts with / and is none of {_OWN}, got {path!r}")
        self._documents = {**self._documents, path: (provider, content_type)}

    def add_report(self, path: str, reporter: Reporter) -> None:
        """Answer `path`, one of the checks' paths, in a form of the daemon's own. Answers 500 when it raises."""
        if path not in _CHECKED:
            raise ValueError(f"add report: expected one of {_CHECKED}, got {path!r}")
        self._reports = {**self._reports, path: reporter}

    def close(self) -> None:
        """Stop serving. May be called twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def answer(self, path: str, client: str = "127.0.0.1") -> Answer:
        """Return what is said to a client, given by its address, who asks for a path."""
        checks = {"/healthz": self.health, "/livez": self.health, "/readyz": self.ready}.get(path)
        if checks is not None:
            return self._check(path, checks)
        if path != "/metrics" and path not in self._documents:
            return Answer(404, _TEXT, f"not here: {' '.join((*_OWN, *self._documents))}\n".encode())
        if self._local_only and not is_loopback(client):
            return Answer(403, _TEXT, f"{path} is for clients on the node itself\n".encode())
        if path == "/metrics":
            return Answer(200, metrics.CONTENT_TYPE, metrics.render(self.registry))
        provider, content_type = self._documents[path]
        return _make(path, lambda: Answer(200, content_type, provider()))

    def _check(self, path: str, checks: Checks) -> Answer:
        results = checks.run()
        failing = {name: reason for name, reason in results.items() if reason is not None}
        if reporter := self._reports.get(path):
            return _make(path, lambda: reporter(failing))
        lines = [f"[+]{n} ok" if r is None else f"[-]{n} failed: {r}" for n, r in results.items()]
        lines.append(f"{path[1:]} check {'failed' if failing else 'passed'}")
        return Answer(503 if failing else 200, _TEXT, ("\n".join(lines) + "\n").encode())


def is_loopback(client: str) -> bool:
    """Whether an address is this host's own loopback, however a socket of either family shows it."""
    address = ip_address(client.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _make(path: str, make: Callable[[], Answer]) -> Answer:
    try:
        return make()
    except Exception as error:
        _log.error("document failed", path=path, error=repr(error), exc_info=error)
        return Answer(500, _TEXT, f"make {path}: {error!r}\n".encode())


class _Server(HTTPServer):
    """One thread a client, at most `_CLIENTS` of them; who comes on top is turned away at once."""

    request_queue_size = 16

    def __init__(self, host: str, port: int, health: HealthServer) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.health = health
        self._free = threading.BoundedSemaphore(_CLIENTS)
        self._ended = threading.Event()
        super().__init__((host, port), _Handler)
        self._wake_read, self._wake_write = socket.socketpair()

    def server_bind(self) -> None:
        # HTTPServer would look up our host name here, which can take as long as DNS does.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.server_address[0] == "::":
            # both families, whatever the host's default is
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def serve(self) -> None:
        """Accept clients until `close`; unlike serve_forever it needs no polling to notice that."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not any(descriptor == self._wake_read.fileno() for descriptor, _ in poll.poll()):
            self._handle_request_noblock()  # type: ignore[attr-defined]
        self._ended.set()

    def close(self) -> None:
        self._wake_write.send(b"\0")
        self._ended.wait(_CLIENT_SECONDS)
        self.server_close()
        self._wake_read.close()
        self._wake_write.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), name="health-client", daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            _log.debug("client lost", error=repr(error))
        finally:
            self.shutdown_request(request)
            self._free.release()


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    server: _Server
    server_version = "podlane"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(body_too=True)

    def do_HEAD(self) -> None:
        self._answer(body_too=False)

    def _answer(self, *, body_too: bool) -> None:
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.health.answer(path, str(self.client_address[0]))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body_too:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        _log.debug("request", client=self.client_address[0], line=format % args)


def _ask(check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        return f"check raised {error!r}"
