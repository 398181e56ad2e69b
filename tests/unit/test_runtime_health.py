"""The health port, asked as Prometheus and a supervisor ask it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from podlane.errors import PodlaneError
from podlane.runtime.health import Answer, Checks, HealthServer

pytestmark = pytest.mark.unit


@pytest.fixture
def server() -> Iterator[HealthServer]:
    health = HealthServer("127.0.0.1", 0, CollectorRegistry())
    yield health
    health.close()


def ask(server: HealthServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


def test_readyz_lists_every_check(server: HealthServer) -> None:
    reason: list[str | None] = ["no complete list of pods yet"]
    server.ready.add("pods", lambda: reason[0])
    server.ready.add("kernel", lambda: None)
    assert ask(server, "/readyz")[:2] == (
        503,
        "[-]pods failed: no complete list of pods yet\n[+]kernel ok\nreadyz check failed\n",
    )
    assert ask(server, "/healthz")[0] == 200
    reason[0] = None
    assert ask(server, "/readyz")[:2] == (200, "[+]pods ok\n[+]kernel ok\nreadyz check passed\n")
    assert ask(server, "/readyz?verbose")[0] == 200


def test_healthz_and_livez_show_the_health_checks(server: HealthServer) -> None:
    assert ask(server, "/livez")[:2] == (200, "livez check passed\n")
    server.health.add("loop", lambda: "stuck for 90 s")
    assert ask(server, "/healthz")[:2] == (503, "[-]loop failed: stuck for 90 s\nhealthz check failed\n")
    assert ask(server, "/livez")[0] == 503
    assert ask(server, "/readyz")[0] == 200


def test_a_check_that_raises_has_failed(server: HealthServer) -> None:
    server.ready.add("broken", lambda: str(1 // 0))
    status, body, _ = ask(server, "/readyz")
    assert status == 503
    assert "[-]broken failed: check raised ZeroDivisionError" in body


def test_metrics_come_from_the_given_registry(server: HealthServer) -> None:
    Counter("podlane_seen", "Test.", registry=server.registry).inc(4)
    status, body, kind = ask(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "podlane_seen_total 4.0" in body
    assert "process_" not in body


def test_other_paths_and_methods(server: HealthServer) -> None:
    assert ask(server, "/")[0] == 404
    assert ask(server, "/healthz", "HEAD")[:2] == (200, "")
    assert ask(server, "/healthz", "POST")[0] == 501


def test_a_daemon_can_serve_documents_of_its_own(server: HealthServer) -> None:
    peers = [3]
    server.add_document("/status", lambda: b'{"peers": %d}' % peers[0])
    server.add_document("/peers", lambda: b"a\n", "text/plain")
    assert ask(server, "/status?watch=1") == (200, '{"peers": 3}', "application/json")
    peers[0] = 4
    assert ask(server, "/status")[1] == '{"peers": 4}'
    assert ask(server, "/peers") == (200, "a\n", "text/plain")
    assert ask(server, "/elsewhere")[:2] == (404, "not here: /metrics /healthz /livez /readyz /status /peers\n")


def test_a_document_that_cannot_be_made_says_why(server: HealthServer) -> None:
    server.add_document("/status", lambda: str(1 // 0).encode())
    status, body, kind = ask(server, "/status")
    assert (status, kind) == (500, "text/plain; charset=utf-8")
    assert body == "make /status: ZeroDivisionError('integer division or modulo by zero')\n"
    assert ask(server, "/livez")[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "status"])
def test_a_document_takes_no_path_that_has_a_meaning(server: HealthServer, path: str) -> None:
    with pytest.raises(ValueError, match="add document"):
        server.add_document(path, lambda: b"")


def test_silent_clients_cannot_take_the_server_away(server: HealthServer) -> None:
    """More idle connections than there are threads: the surplus is turned away, and others are served after."""
    assert server.port is not None
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(12)]
    try:
        turned_away = [c for c in idle[8:] if c.recv(1) == b""]
        assert len(turned_away) == 4
    finally:
        for connection in idle:
            connection.close()
    for _ in range(100):
        try:
            assert ask(server, "/livez")[0] == 200
            return
        except (urllib.error.URLError, OSError):  # threads of the closed connections are still ending
            threading.Event().wait(0.05)
    pytest.fail("the server did not come back")


def test_close_frees_the_port_and_may_be_repeated() -> None:
    first = HealthServer("127.0.0.1", 0, CollectorRegistry())
    with pytest.raises(PodlaneError, match=rf"^listen on 127.0.0.1:{first.port}: Address already in use$"):
        HealthServer("127.0.0.1", first.port)
    first.close()
    first.close()
    second = HealthServer("127.0.0.1", first.port)
    assert second.port == first.port
    second.close()


def test_none_serves_nothing() -> None:
    health = HealthServer("127.0.0.1", None)
    assert health.port is None
    health.close()


def test_ipv6() -> None:
    health = HealthServer("::1", 0, CollectorRegistry())
    try:
        with urllib.request.urlopen(f"http://[::1]:{health.port}/livez", timeout=10) as answer:
            assert answer.status == 200
    finally:
        health.close()


def test_checks_can_be_replaced() -> None:
    checks = Checks()
    checks.add("a", lambda: "bad")
    checks.add("b", lambda: None)
    assert checks.failing() == {"a": "bad"}
    checks.add("a", lambda: None)
    assert checks.failing() == {}
    assert list(checks.run()) == ["a", "b"]


def test_a_daemon_can_answer_its_checks_in_its_own_form(server: HealthServer) -> None:
    server.add_report(
        "/livez", lambda failing: Answer(503 if failing else 200, "application/json", b'{"n": %d}' % len(failing))
    )
    assert ask(server, "/livez") == (200, '{"n": 0}', "application/json")
    server.health.add("loop", lambda: "stuck")
    assert ask(server, "/livez") == (503, '{"n": 1}', "application/json")
    assert ask(server, "/healthz")[1] == "[-]loop failed: stuck\nhealthz check failed\n"
    server.add_report("/healthz", lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
    assert ask(server, "/healthz")[0] == 500
    with pytest.raises(ValueError, match="add report"):
        server.add_report("/metrics", lambda _: Answer(200, "", b""))


@pytest.mark.parametrize(
    ("client", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True)]
    + [(each, False) for each in ("192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0", "::", "10.5.1.2")],
)
def test_what_tells_of_the_node_can_be_for_its_own_clients_only(client: str, local: bool) -> None:
    health = HealthServer("127.0.0.1", None, CollectorRegistry(), local_only=True)
    health.add_document("/status", lambda: b"{}")
    for path in ("/metrics", "/status"):
        assert health.answer(path, client).status == (200 if local else 403)
    for path in ("/healthz", "/livez", "/readyz"):
        assert health.answer(path, client).status == 200
    assert HealthServer("127.0.0.1", None, CollectorRegistry()).answer("/metrics", client).status == 200


def test_all_addresses_of_both_families() -> None:
    """Who asks over IPv4 is a loopback client too, though the socket shows it as an IPv6 one."""
    health = HealthServer("::", 0, CollectorRegistry(), local_only=True)
    try:
        for address in ("127.0.0.1", "[::1]"):
            with urllib.request.urlopen(f"http://{address}:{health.port}/metrics", timeout=10) as answer:
                assert answer.status == 200
    finally:
        health.close()
