"""The join service's port: HTTPS for hosts that have a token, or a certificate of ours.

Owns: `POST /v1/join`, `POST /v1/renew` (with a client's certificate) and `GET /v1/bundle`,
and what a stranger may take of this process. Invariants: a connection has REQUEST_TIMEOUT
for handshake and request together, as long again for the answer, and MAX_REQUEST bytes;
there are at most MAX_CONNECTIONS at once, few of them from one address, and what is more is
closed unread; nothing of a request is kept when it ends. The certificate is read again when
its file changes.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
from cryptography import x509

from podlane.errors import PodlaneError, StoreUnavailable, UsageError
from podlane.host.joincall import profile_of
from podlane.host.joinmessages import BUNDLE, JOIN, MAX_REQUEST, RENEW, JoinRequest, Problem, RenewRequest
from podlane.host.joinrules import Refused, public_key_hash
from podlane.host.joinservice import JoinService
from podlane.pki import files
from podlane.pki.authority import BUNDLE_FILE
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.wire import Wire

MAX_CONNECTIONS = 64
MAX_CONNECTIONS_EACH = 16
"""From one address."""
REQUEST_TIMEOUT = 10.0
"""Seconds."""

_log = get_logger("join")


class Certificate:
    """The server's certificate and whom it trusts, as its files say now."""

    def __init__(self, folder: Path) -> None:
        """Raises PodlaneError when they cannot be used."""
        self._folder = folder
        self._lock = threading.Lock()
        self._version: object = None
        self._context: ssl.SSLContext | None = None
        self.context()

    def context(self) -> ssl.SSLContext:
        """Raises PodlaneError, unless there is an older one, which is then used on."""
        with self._lock:
            try:
                version = [_version(path) for path in self._paths]
                if self._context is None or version != self._version:
                    self._context, self._version = self._load(), version
            except (OSError, ValueError) as error:
                if self._context is None:
                    raise PodlaneError(f"read certificate of the join service in {self._folder}: {error}") from error
                _log.warning("certificate not read again", folder=str(self._folder), error=str(error))
            return self._context

    @property
    def bundle(self) -> str:
        return (self._folder / BUNDLE_FILE).read_text()

    @property
    def _paths(self) -> tuple[Path, Path, Path]:
        folder = self._folder
        return files.certificate_file(folder, "join"), files.key_file(folder, "join"), folder / BUNDLE_FILE

    def _load(self) -> ssl.SSLContext:
        certificate, key, bundle = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(bundle)
        context.verify_mode = ssl.CERT_OPTIONAL  # who joins has none yet
        return context


class JoinServer(ThreadingHTTPServer):
    """Listens from construction on, answers in `serve`. Raises PodlaneError when the address cannot be had."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        *,
        service: JoinService,
        certificate: Certificate,
        request_timeout: float = REQUEST_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self.service = service
        self.certificate = certificate
        self.request_timeout = request_timeout
        self.clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Request)
        except OSError as error:
            raise PodlaneError(f"listen on {host}:{port}: {error.strerror or error}") from error
        self.port: int = self.server_address[1]

    def serve(self, stop: threading.Event) -> None:
        """Answer until `stop` is set."""
        thread = threading.Thread(target=self.serve_forever, args=(0.2,), name="join-accept", daemon=True)
        thread.start()
        stop.wait()
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        # not HTTPServer's: it asks the resolver for a name nobody needs
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is for both
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "join", self.server_address[1]

    def get_request(self) -> tuple[Any, Any]:
        connection, address = self.socket.accept()
        try:
            context = self.certificate.context()
            # the handshake is the connection's own thread's: it would hold up all others here
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except (PodlaneError, OSError, ValueError) as error:
            connection.close()
            raise OSError(f"accept: {error}") from error

    def verify_request(self, request: Any, client_address: Any) -> bool:
        del request
        host = client_address[0]
        with self._lock:
            if self._open.total() >= MAX_CONNECTIONS or self._open[host] >= MAX_CONNECTIONS_EACH:
                return False
            self._open[host] += 1
            return True

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had: it is not this connection's any more
            self._gone(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._gone(client_address[0])

    def _gone(self, host: str) -> None:
        with self._lock:
            self._open[host] -= 1
            if self._open[host] <= 0:
                del self._open[host]

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        fault = sys.exception()
        if isinstance(fault, OSError):
            _log.debug("connection ended", client=client_address[0], error=str(fault))
        else:
            _log.error("connection ended by a fault of ours", client=client_address[0], exc_info=True)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection
    server_version = "podlane-join"
    sys_version = ""
    server: JoinServer

    def setup(self) -> None:
        self._tls = cast(ssl.SSLSocket, self.request)
        self.wire = Wire(self._tls)
        self.rfile = io.BufferedReader(self.wire)
        self.wfile = cast(io.BufferedIOBase, self.wire)
        self.wire.limit(self.server.request_timeout, MAX_REQUEST)

    def handle(self) -> None:
        self.wire.handshake()
        super().handle()

    def finish(self) -> None:
        self.wire.close()

    def do_GET(self) -> None:
        self._answer({BUNDLE: self._bundle}, "application/x-pem-file")

    def do_POST(self) -> None:
        self._answer({JOIN: self._join, RENEW: self._renew}, "application/json")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        _log.debug("request", client=self.client_address[0], text=format % args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class makes of a request it does not understand."""
        del explain
        self._problem(code, message or "bad request")

    def _answer(self, paths: dict[str, Callable[[], bytes]], content_type: str) -> None:
        try:
            work = paths.get(self.path)
            if work is None:
                raise Refused(404, f"there is nothing at {self.path[:64]}")
            body = work()
        except Refused as error:
            self._problem(error.status, str(error))
        except UsageError as error:
            self._problem(400, str(error))
        except StoreUnavailable as error:
            self._problem(503, str(error))
        except PodlaneError as error:
            self._problem(409, str(error))
        except TimeoutError:
            return  # the client takes too long
        except OSError as error:
            self._problem(500, f"read a file of the server's: {error.strerror or error}")
        else:
            self._say(200, content_type, body)

    def _bundle(self) -> bytes:
        return self.server.certificate.bundle.encode()

    def _join(self) -> bytes:
        request = _decoded(self._body(), JoinRequest)
        return msgspec.json.encode(self.server.service.join(request, self._peer))

    def _renew(self) -> bytes:
        der = self.wire.certificate()
        caller = profile_of(der) if der else None
        if caller is None:
            raise Refused(401, "a renewal needs the certificate that is to be renewed")
        request = _decoded(self._body(), RenewRequest)
        key = public_key_hash(x509.load_der_x509_certificate(der).public_key())
        return msgspec.json.encode(self.server.service.renew(request, caller, key, self._peer))

    @property
    def _peer(self) -> str:
        return str(self.client_address[0]).removeprefix("::ffff:")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 6 or int(length) > MAX_REQUEST:
            raise Refused(411 if not length else 413, f"expected a body of at most {MAX_REQUEST} bytes")
        body = cast(BinaryIO, self.rfile).read(int(length))
        if len(body) < int(length):
            raise TimeoutError
        return body

    def _problem(self, status: int, message: str) -> None:
        self._say(status, "application/json", msgspec.json.encode(Problem(message)))

    def _say(self, status: int, content_type: str, body: bytes) -> None:
        self.close_connection = True
        self.wire.limit(self.server.request_timeout)
        with suppress(OSError):
            self.send_response_only(status)
            self.send_header("Date", formatdate(self.server.clock.now(), usegmt=True))
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wire.linger(1.0)


def _decoded(body: bytes, form: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=form)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(400, f"request: {error}") from error


def _version(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ino
