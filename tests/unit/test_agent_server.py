"""The agent's API and its client, over a real connection and an engine in memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator

import msgspec
import pytest
from agent_certificate import certificate
from agent_objects import Host, container, name, pod

from scheduler.agent import frames
from scheduler.agent.certificate import client_context
from scheduler.agent.client import AgentClient, AgentError
from scheduler.agent.guard import TokenGuard
from scheduler.agent.server import AgentServer
from scheduler.agent.trust import Pinned

pytestmark = pytest.mark.unit

TOKEN = "s3cret"


class Api:
    def __init__(self, request_timeout: float = 60.0) -> None:
        self.host = Host(pod("p", container("web"), container("side")))
        self.host.sync()
        self.token = TOKEN
        self.server = AgentServer(
            *("127.0.0.1", 0),
            runtime=self.host.runtime,
            guard=TokenGuard(certificate(), lambda: self.token),
            pods=self.host.pods.values,
            request_timeout=request_timeout,
            clock=self.host.clock,
        )
        self.client = self.with_token(TOKEN)

    def with_token(self, token: str) -> AgentClient:
        return AgentClient(f"https://127.0.0.1:{self.server.port}", Pinned(token, certificate().fingerprint))

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """As who can reach the port and nothing else."""
        plain = socket.create_connection(("127.0.0.1", self.server.port), 10, source_address=(source, 0))
        return client_context().wrap_socket(plain)

    def raw(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.server.port, timeout=10, context=client_context())
        given = {"Authorization": f"Bearer {TOKEN}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, body or None, given)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    threading.Thread(target=api.server.close).start()  # takes up to half a second


def test_logs(api: Api) -> None:
    api.host.runtime.write(name("web", "p"), b"one\n")
    api.host.clock.advance(100)
    api.host.runtime.write(name("web", "p"), b"two\n")
    client = api.client
    assert b"".join(client.logs("default", "p", "web")) == b"one\ntwo\n"
    assert b"".join(client.logs("default", "p", "web", tail=1)) == b"two\n"
    assert b"".join(client.logs("default", "p", "web", since=api.host.clock.now() - 50)) == b"two\n"
    assert b"".join(client.logs("default", "p", "web", since_seconds=50)) == b"two\n"
    assert b"".join(client.logs("default", "p", "web", limit_bytes=6)) == b"one\ntw"
    assert b"".join(client.logs("default", "p", "web", limit_bytes=0)) == b""
    assert b"".join(client.logs("default", "p", "side", follow=True)) == b""


def test_logs_of_the_previous_container(api: Api) -> None:
    api.host.runtime.write(name("web", "p"), b"last words\n")
    with pytest.raises(AgentError, match='previous terminated container "web" in pod "p" not found'):
        api.client.logs("default", "p", "web", previous=True)
    api.host.runtime.end(name("web", "p"), 1)
    for _ in ("ended, and to be started again", "started again"):
        assert b"".join(api.client.logs("default", "p", "web", previous=True)) == b"last words\n"
        api.host.sync()
    assert b"".join(api.client.logs("default", "p", "web")) == b""


def test_the_younger_of_two_pods_of_one_name_is_meant(api: Api) -> None:
    api.host.clock.advance(10)
    new = pod("p")
    metadata = msgspec.structs.replace(new.metadata, uid="uid-new")
    api.host.pods["uid-new"] = msgspec.structs.replace(new, metadata=metadata)
    api.host.sync()
    api.host.runtime.write("podlane_web_p_default_uid-new_0", b"new\n")
    assert b"".join(api.client.logs("default", "p", "web")) == b"new\n"


@pytest.mark.parametrize("given", ["", "wrong", TOKEN + "x", TOKEN[:-1], "s3crét"])
def test_nothing_without_the_token(api: Api, given: str) -> None:
    for path in ("/logs/default/p/web", "/nonsense"):
        status, _ = api.raw("GET", path, Authorization=f"Bearer {given}".encode().decode("latin-1"))
        assert status == 401
    status, _ = api.raw("POST", "/exec/default/p/web", "{}", Authorization=given.encode().decode("latin-1"))
    assert status == 401


def test_an_empty_token_opens_nothing(api: Api) -> None:
    api.token = ""
    with pytest.raises(AgentError) as refused:
        api.with_token("").logs("default", "p", "web")
    assert refused.value.status == 401


def test_what_is_not_there_is_said(api: Api) -> None:
    with pytest.raises(AgentError, match='container "db" of pod default/p is not on this node') as refused:
        api.client.logs("default", "p", "db")
    assert refused.value.status == 404
    with pytest.raises(AgentError, match="is not on this node"):
        api.client.exec("default", "p", "POD", ["sh"])
    assert api.raw("GET", "/pods")[0] == 404
    assert api.raw("GET", "/logs/default/p/web?tail=x") == (400, "tail: expected a number, got 'x'\n")
    assert api.raw("GET", "/logs/default/p/web?since=nan")[0] == 400


def test_an_agent_that_is_away_is_said(api: Api) -> None:
    away = api.with_token(TOKEN)
    api.server.close()
    with pytest.raises(AgentError, match=r"reach agent 127\.0\.0\.1:\d+: Connection refused"):
        away.logs("default", "p", "web")


def test_exec_carries_input_output_and_exit_code(api: Api) -> None:
    session = api.client.exec("default", "p", "web", ["sh"], stdin=True)
    output = session.output()
    session.send(b"hello")
    assert next(output) == ("stdout", b"hello")
    session.send(b"x" * 200_000)
    assert sum(len(next(output)[1]) for _ in range(7)) == 200_000
    session.resize(24, 80)
    session.send(b"exit 7")
    assert list(output) == []
    assert session.exit_code() == 7
    session.close()


def test_exec_s_end_is_not_lost_on_a_client_that_is_still_sending(api: Api) -> None:
    session = api.client.exec("default", "p", "web", ["sh"], stdin=True)
    session.send(bytes(400_000))  # echoed, which is more than waits on our side while we do not read
    session.send(b"exit 3")

    def send() -> None:
        with contextlib.suppress(AgentError):
            for _ in range(100):
                session.send(bytes(100_000))

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(60)
    assert sum(len(data) for _, data in session.output()) == 400_000
    assert session.exit_code() == 3
    session.close()


def test_exec_ends_with_its_input(api: Api) -> None:
    session = api.client.exec("default", "p", "web", ["cat"], stdin=True)
    session.send(b"abc")
    session.end_input()
    assert list(session.output()) == [("stdout", b"abc")]
    assert session.exit_code() == 0


def test_closing_an_exec_ends_its_reader(api: Api) -> None:
    session = api.client.exec("default", "p", "web", ["cat"], stdin=True)
    reader = threading.Thread(target=lambda: list(session.output()))
    reader.start()
    session.close()
    reader.join(10)
    assert not reader.is_alive()
    with pytest.raises(AgentError):
        session.exit_code()


def test_exec_in_what_does_not_run_is_refused(api: Api) -> None:
    api.host.runtime.end(name("web", "p"), 1)
    with pytest.raises(AgentError, match="is not running") as refused:
        api.client.exec("default", "p", "web", ["sh"])
    assert refused.value.status == 409


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"command": "sh"}', '{"command": []}', '{"command": [1]}'])
def test_an_exec_request_that_makes_no_sense_is_refused(api: Api, body: str) -> None:
    assert api.raw("POST", "/exec/default/p/web", body, Upgrade=frames.UPGRADE)[0] == 400


def test_exec_needs_an_upgrade(api: Api) -> None:
    assert api.raw("POST", "/exec/default/p/web", json.dumps({"command": ["sh"]}))[0] == 426
