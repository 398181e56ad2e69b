"""Health-check node ports, asked over real sockets of this machine's loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from podlane.runtime import metrics
from proxyd.healthcheck import CLIENTS, REQUEST_BYTES, HealthCheckServer, ServiceHealth, read_request
from tests.conftest import free_port

pytestmark = pytest.mark.unit

HOME = ("127.0.0.1",)
WEB, MAIL = ServiceHealth("default", "web", 2), ServiceHealth("default", "mail", 0)


class State:
    well = True


@contextlib.contextmanager
def serving(state: State, **how: float) -> Iterator[HealthCheckServer]:
    server = HealthCheckServer(lambda: state.well, **how)
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        server.set({})  # wakes it
        thread.join(10)
        assert not thread.is_alive()
        server.close()
        server.close()


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[HealthCheckServer]:
    with serving(state) as server:
        yield server


def ask(
    port: int, path: str = "/", method: str = "GET", address: str = "127.0.0.1"
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_it_answers_as_kube_proxy_does(server: HealthCheckServer) -> None:
    port = free_port()
    assert server.set({port: WEB}, HOME) == []
    status, body, headers = ask(port, "/any/path?and=query")
    assert status == 200
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert ask(port, method="HEAD")[:2] == (200, b"")
    assert ask(port, method="POST")[0] == 405


def test_503_without_local_endpoints_or_when_the_proxy_is_ill(server: HealthCheckServer, state: State) -> None:
    web, mail = free_port(), free_port()
    server.set({web: WEB, mail: MAIL}, HOME)
    status, body, headers = ask(mail)
    assert (status, json.loads(body)["localEndpoints"], headers["X-Load-Balancing-Endpoint-Weight"]) == (503, 0, "0")
    assert ask(web)[0] == 200
    state.well = False
    status, body, _ = ask(web)
    assert status == 503
    assert json.loads(body)["serviceProxyHealthy"] is False


def test_numbers_change_without_a_new_listener(server: HealthCheckServer) -> None:
    port = free_port()
    server.set({port: WEB}, HOME)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as open_before:
        server.set({port: WEB._replace(local_endpoints=0)}, HOME)
        open_before.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert open_before.recv(4096).startswith(b"HTTP/1.1 503 ")


def test_a_port_that_is_wanted_no_more_is_closed_and_free(server: HealthCheckServer) -> None:
    port = free_port()
    server.set({port: WEB}, HOME)
    assert ask(port)[0] == 200
    server.set({}, HOME)
    with pytest.raises(OSError, match="refused"):
        ask(port)
    assert server.set({port: MAIL}, HOME) == []  # at once, even if the thread has not closed the old one
    assert ask(port)[0] == 503


def test_it_listens_where_it_is_told(server: HealthCheckServer) -> None:
    port = free_port()
    server.set({port: WEB}, ("127.0.0.2", "::1"))
    assert ask(port, address="127.0.0.2")[0] == 200
    assert ask(port, address="::1")[0] == 200
    with pytest.raises(OSError, match="refused"):
        ask(port)
    assert server.set({port: WEB}) == []  # everywhere
    assert ask(port)[0] == 200
    assert ask(port, address="::1")[0] == 200


def test_a_port_somebody_has_is_reported_retried_and_harms_no_other(state: State) -> None:
    with serving(state, retry_interval=0.05) as server, socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        taken, other = rival.getsockname()[1], free_port()
        failed = server.set({taken: WEB, other: MAIL}, HOME)
        assert list(map(str, failed)) == [f"listen on 127.0.0.1:{taken} for default/web: address already in use"]
        assert ask(other)[0] == 503
        assert server.failures() == failed
        assert metrics.value("podlane_proxyd_health_check_ports_failing") == 1
        rival.close()
        for _ in range(400):
            if not server.failures():
                break
            threading.Event().wait(0.02)
        assert ask(taken)[0] == 200
        assert metrics.value("podlane_proxyd_health_check_ports_failing") == 0


def test_an_address_that_is_not_ours_is_reported(server: HealthCheckServer) -> None:
    port = free_port()
    failed = server.set({port: WEB}, ("127.0.0.1", "192.0.2.1"))
    assert [(each.address, each.why) for each in failed] == [("192.0.2.1", "cannot assign requested address")]
    assert ask(port)[0] == 200
    assert server.set({port: WEB}, HOME) == []


def test_silent_and_slow_clients_do_not_block_others(state: State) -> None:
    """Each of more clients than there is room for sends half a request; who asks properly is answered."""
    port = free_port()
    with serving(state, client_seconds=60) as server, contextlib.ExitStack() as stack:
        server.set({port: WEB}, HOME)
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(CLIENTS)]
        for each in idle:
            each.sendall(b"GET / HT")
        assert ask(port)[0] == 200
        idle.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)))
        assert ask(port)[0] == 200
        assert idle[0].recv(1) == b""  # who came first went


def test_a_client_gets_only_so_much_time(state: State) -> None:
    with serving(state, client_seconds=0.05) as server:
        port = free_port()
        server.set({port: WEB}, HOME)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            assert slow.recv(1) == b""


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\0\r\n\r\n", b"hello\n\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_garbage_is_answered_and_forgotten(server: HealthCheckServer, garbage: bytes) -> None:
    port = free_port()
    server.set({port: WEB}, HOME)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(garbage)
        assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert ask(port)[0] == 200


def test_a_request_in_pieces_and_one_that_never_ends(server: HealthCheckServer) -> None:
    port = free_port()
    server.set({port: WEB}, HOME)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for piece in (b"GE", b"T / HTTP/1.1\r\nHost", b": x\r\n\r", b"\n"):
            client.sendall(piece)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert read_request(b"GET / HTTP/1.1\r\nX: " + b"x" * (REQUEST_BYTES - 100)) is None
    assert read_request(b"GET / HTTP/1.1\r\nX: " + b"x" * REQUEST_BYTES) == (400, True)


def test_a_health_check_that_raises_has_failed() -> None:
    server = HealthCheckServer(lambda: bool(1 // 0))
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        port = free_port()
        server.set({port: WEB}, HOME)
        assert ask(port)[0] == 503
        assert ask(port)[0] == 503
    finally:
        stop.set()
        thread.join(10)
        server.close()
    assert server.set({port: WEB}, HOME) == []  # closed: nothing is opened any more
    with pytest.raises(OSError, match="refused"):
        ask(port)


def test_what_comes_and_goes_before_the_thread_looks_is_served_right(state: State) -> None:
    """As at a start with many changes: several calls before the thread has run at all."""
    server = HealthCheckServer(lambda: state.well)
    port, other = free_port(), free_port()
    server.set({port: WEB}, HOME)
    server.set({other: WEB}, HOME)
    server.set({port: MAIL, other: WEB}, HOME)
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        assert (ask(port)[0], ask(other)[0]) == (503, 200)
    finally:
        stop.set()
        thread.join(10)
        server.close()
