"""Asking over HTTP with redirects, and gRPC health, as the kubelet does."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from agent_objects import container, pod

from podlane.api.types import ContainerPort, GRPCAction, HTTPGetAction, HTTPHeader, Probe, TCPSocketAction
from scheduler.agent import checks
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.probestate import Target

pytestmark = pytest.mark.unit


class Site(http.server.BaseHTTPRequestHandler):
    """`/to?URL` leads there, `/round` to itself, `/told` is 200 if the headers are as wanted, all else 404."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        status, location = 404, ""
        if path == "/told":
            wanted = {"Host": "shop.example", "X-Key": "a", "User-Agent": "me"}
            status = 200 if all(self.headers.get(name) == value for name, value in wanted.items()) else 400
        elif path == "/fine":
            status = 200
        elif path in {"/to", "/round"}:
            status, location = 302, query or "/round"
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(probe: Probe) -> tuple[bool, str]:
    ct = container(ports=(ContainerPort(container_port=1, name="x"),))
    return checks.checker(FakeRuntime())(Target("c1", pod("p", ct), ct, probe, "127.0.0.1"))


def get(port: int, path: str, **headers: str) -> tuple[bool, str]:
    given = tuple(HTTPHeader(name=name.replace("_", "-"), value=value) for name, value in headers.items())
    return ask(Probe(http_get=HTTPGetAction(port=port, path=path, http_headers=given), timeout_seconds=5))


def test_a_redirect_on_the_same_host_is_followed(site: int) -> None:
    assert get(site, "/to?/fine") == (True, "")
    assert get(site, f"/to?http://127.0.0.1:{site}/fine") == (True, "")
    assert get(site, "/to?/absent") == (False, "HTTP probe failed with statuscode: 404")
    assert get(site, "/round") == (False, "stopped after 10 redirects")


def test_a_redirect_to_another_host_is_an_answer_and_a_warning(site: int) -> None:
    there = "http://other.example/login"
    assert get(site, f"/to?{there}") == (True, f"Probe terminated redirects, Location: {there}")


def test_headers_are_the_manifests(site: int) -> None:
    assert get(site, "/told", Host="shop.example", X_Key="a", user_agent="me") == (True, "")
    assert get(site, "/told", Host="shop.example") == (False, "HTTP probe failed with statuscode: 400")


@pytest.fixture(scope="module")
def health() -> Iterator[int]:
    """A server whose service "" serves and "db" does not; it knows no other."""

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request not in {b"", b"\x0a\x02db"}:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return b"\x08\x01" if not request else b"\x08\x02"

    method = grpc.unary_unary_rpc_method_handler(check)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_a_port_nobody_listens_at_is_told_in_the_systems_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert ask(Probe(tcp_socket=TCPSocketAction(port=port))) == (False, "Connection refused")
        assert get(port, "/") == (False, "Connection refused")


def test_grpc_health(health: int) -> None:
    def asked(service: str = "", port: int = health) -> tuple[bool, str]:
        return ask(Probe(grpc=GRPCAction(port=port, service=service), timeout_seconds=5))

    assert asked() == (True, "")
    assert asked("db") == (False, 'service unhealthy (responded with "NOT_SERVING")')
    assert asked("other") == (False, "health rpc failed: unknown service")


def test_a_server_without_health_says_so() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        ok, message = ask(Probe(grpc=GRPCAction(port=port), timeout_seconds=5))
    finally:
        server.stop(None).wait()
    assert (ok, message) == (
        False,
        "this server does not implement the grpc health protocol (grpc.health.v1.Health)",
    )


def test_health_messages() -> None:
    assert checks.health_request("a" * 300) == b"\x0a\xac\x02" + b"a" * 300
    assert checks.health_status(b"") == 0
    assert checks.health_status(b"\x08\x01") == 1
