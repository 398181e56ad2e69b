"""The agent's port before those who can reach it and have no token, and before one who stands in between."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from agent_certificate import certificate

from podlane.runtime.command import run
from scheduler.agent.apirequest import MAX_HEAD, MAX_SESSIONS
from scheduler.agent.certificate import Certificate, client_context, ensure_certificate
from scheduler.agent.client import AgentClient, AgentError
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.guard import TokenGuard
from scheduler.agent.runtime import NO_NETWORK, ContainerConfig
from scheduler.agent.server import MAX_STRANGERS_EACH, AgentServer
from scheduler.agent.trust import Pinned

pytestmark = pytest.mark.unit

TOKEN = "s3cret-of-the-cluster"
LONG = 300.0
SHORT = 0.5


class Port:
    """An agent's port, with one container behind it that has written `secret output`."""

    def __init__(self, request_timeout: float = LONG) -> None:
        labels = {
            "podlane.io/pod-uid": "u",
            "podlane.io/pod-namespace": "default",
            "podlane.io/pod-name": "p",
            "podlane.io/container-name": "web",
        }
        runtime = FakeRuntime()
        runtime.add_image("i")
        runtime.start(runtime.create(ContainerConfig("c", "i", labels, NO_NETWORK)))
        runtime.write("c", b"secret output\n")
        self.server = AgentServer(
            *("127.0.0.1", 0),
            runtime=runtime,
            guard=TokenGuard(certificate(), lambda: TOKEN),
            request_timeout=request_timeout,
        )

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), 60, source_address=(source, 0))

    def connect_tls(self) -> ssl.SSLSocket:
        return client_context().wrap_socket(self.connect())

    def client(self, port: int = 0) -> AgentClient:
        return AgentClient(f"https://127.0.0.1:{port or self.server.port}", Pinned(TOKEN, certificate().fingerprint))

    def logs(self, port: int = 0) -> bytes:
        return b"".join(self.client(port).logs("default", "p", "web"))


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    threading.Thread(target=port.server.close).start()  # takes up to half a second


@pytest.fixture
def hasty() -> Iterator[Port]:
    port = Port(SHORT)
    yield port
    threading.Thread(target=port.server.close).start()


class Between:
    """Stands on the way to a port: passes bytes on and keeps them, or answers itself with `certificate`."""

    def __init__(self, port: int, certificate: Certificate | None = None) -> None:
        self.seen = b""
        self.ended = threading.Event()
        self._target, self._certificate = port, certificate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept if certificate is None else self._pretend, daemon=True).start()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target), 60)
        back = threading.Thread(target=self._pass, args=(far, near))
        back.start()
        self._pass(near, far)
        back.join()
        self.ended.set()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _pretend(self) -> None:
        assert self._certificate is not None
        near, _ = self._listener.accept()
        with suppress(OSError):
            tls = self._certificate.context.wrap_socket(near, server_side=True)
            while data := tls.recv(65536):
                self.seen += data
        self.ended.set()


def test_who_listens_on_the_way_reads_nothing(port: Port) -> None:
    between = Between(port.server.port)
    assert port.logs(between.port) == b"secret output\n"
    assert between.ended.wait(60)
    assert len(between.seen) > 500
    for secret in (TOKEN.encode(), b"Bearer", b"secret output", b"/logs/"):
        assert secret not in between.seen


def test_another_certificate_is_told_nothing(port: Port) -> None:
    between = Between(port.server.port, certificate("impostor"))
    with pytest.raises(AgentError, match=r"another certificate .* than its node has published") as refused:
        port.logs(between.port)
    assert certificate("impostor").fingerprint in str(refused.value)
    assert between.ended.wait(60)
    assert between.seen == b""


def test_a_port_without_tls_is_told_nothing(port: Port) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def answer() -> None:
        near, _ = listener.accept()
        seen.append(near.recv(65536))
        near.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        near.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(AgentError, match="reach agent"):
        port.logs(listener.getsockname()[1])
    thread.join(60)
    listener.close()
    assert seen[0][0] == 0x16  # a TLS handshake
    assert TOKEN.encode() not in seen[0]


def test_a_client_without_tls_gets_nothing(port: Port) -> None:
    with port.connect() as plain:
        plain.sendall(f"GET /logs/default/p/web HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b"secret output" not in _until_end(plain)


@pytest.mark.parametrize("path", ["/logs/default/p/web", "/stats", "/", "/nonsense"])
@pytest.mark.parametrize("header", ["", "Authorization: Bearer \r\n", f"Authorization: Basic {TOKEN}\r\n"])
def test_without_the_token_everything_is_401(port: Port, path: str, header: str) -> None:
    with port.connect_tls() as tls:
        tls.sendall(f"GET {path} HTTP/1.1\r\n{header}\r\n".encode())
        answer = _until_end(tls)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"secret output" not in answer


@pytest.mark.parametrize("line", ["PUT / HTTP/1.1", "GET / HTTP/9", "nonsense", "GET /stats", "GET  / / HTTP/1.1"])
def test_nor_does_what_is_no_request_tell_a_stranger_more(port: Port, line: str) -> None:
    with port.connect_tls() as tls:
        tls.sendall(f"{line}\r\n\r\n".encode())
        answer = _until_end(tls)
    assert answer.endswith(b"the cluster's bearer token is required\n")
    assert b"python" not in answer.lower()


@pytest.mark.parametrize(
    "begin",
    [
        lambda port: (port.connect(), b"\x16"),
        lambda port: (port.connect_tls(), b"G"),
        lambda port: (port.connect_tls(), b"GET / HTTP/1.1\r\nX: "),
    ],
    ids=["before the handshake", "in the first line", "in a header"],
)
def test_a_slow_request_has_an_end_however_often_a_byte_comes(
    hasty: Port, begin: Callable[[Port], tuple[socket.socket, bytes]]
) -> None:
    drip, closed = threading.Event(), threading.Event()

    def trickle() -> None:
        with suppress(OSError):  # sending fails once the agent has closed
            connection, start = begin(hasty)
            with connection:
                connection.sendall(start)
                while not drip.wait(0.02):
                    connection.sendall(b"x")
        closed.set()

    threading.Thread(target=trickle, daemon=True).start()
    assert closed.wait(60)
    drip.set()
    assert _eventually(hasty.logs) == b"secret output\n"


def test_a_head_that_does_not_end_is_cut_off(port: Port) -> None:
    with port.connect_tls() as tls:
        with suppress(OSError):
            tls.sendall(b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * (MAX_HEAD // 40))
        assert b"200" not in _until_end(tls)
    assert port.logs() == b"secret output\n"


def test_those_without_token_take_no_room_from_others(port: Port) -> None:
    idle = [port.connect() for _ in range(MAX_STRANGERS_EACH)]
    one_more = port.connect()
    assert _until_end(one_more) == b""
    other = port.connect(source="127.0.0.2")
    with client_context().wrap_socket(other) as tls:
        tls.sendall(f"GET /logs/default/p/web HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert b"secret output" in _until_end(tls)
    for connection in (*idle, one_more):
        connection.close()


def test_sessions_have_a_limit_and_are_free_again_after(port: Port) -> None:
    client = port.client()
    sessions = [client.exec("default", "p", "web", ["cat"], stdin=True) for _ in range(MAX_SESSIONS)]
    with pytest.raises(AgentError, match="64 sessions are open already") as refused:
        port.logs()
    assert refused.value.status == 503
    for session in sessions:
        session.end_input()
        assert list(session.output()) == []
        session.close()
    assert _eventually(port.logs) == b"secret output\n"


def test_the_key_is_the_nodes_alone_and_stays(tmp_path: Path) -> None:
    first = ensure_certificate(tmp_path / "state", "n1")
    (file,) = (tmp_path / "state").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert ensure_certificate(tmp_path / "state", "n1").fingerprint == first.fingerprint
    told = run(
        ["openssl", "x509", "-in", str(file), "-noout", "-subject", "-fingerprint", "-sha256"], timeout=60
    ).stdout
    assert "CN = n1" in told
    assert first.fingerprint == told.split("Fingerprint=")[1].strip().replace(":", "").lower()
    file.write_text("half a file")
    assert ensure_certificate(tmp_path / "state", "n1").fingerprint != first.fingerprint


def _until_end(connection: socket.socket) -> bytes:
    data = b""
    with suppress(OSError):
        while more := connection.recv(65536):
            data += more
    return data


def _eventually(ask: Callable[[], bytes]) -> bytes:
    """Until the agent has noticed that sessions ended."""
    for _ in range(600):
        with suppress(AgentError):
            return ask()
        threading.Event().wait(0.05)
    return ask()
