"""The agent's port behind the cluster's authority: real files, real sockets."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.api.types import (
    AGENT_CERTIFICATE_ANNOTATION,
    ClusterConfig,
    DaemonEndpoint,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeStatus,
    ObjectMeta,
)
from podlane.api.types import Node as NodeObject
from podlane.cli.main import cli
from podlane.cli.session import Session
from podlane.errors import PodlaneError
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from podlane.pki.profile import Profile
from podlane.runtime.clock import ScriptedClock
from podlane.runtime.log import configure
from podlane.runtime.wire import Subject
from podlane.store.config import StoreConfig
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.agent.certificate import ensure_certificate, fingerprint_of
from scheduler.agent.client import AgentClient, AgentError, AgentExec
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.guard import OperatorGuard, TokenGuard
from scheduler.agent.server import AgentServer
from scheduler.agent.trust import Mutual, Pinned, Trust
from tests.unit.agent_objects import Host, container, pod

pytestmark = pytest.mark.contract

TOKEN = "s3cret"
USAGE = {"timestamp": 0, "window": 1, "node": {"cpu": 5_000_000, "memory": 1 << 20}, "pods": []}
ALICE = profile.operator("alice")
AGENT = profile.node_daemon("agent", "n1")


class Node:
    """An agent of node n1 whose `GET /stats` is answered, and the files of its cluster's holders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder, now=datetime.now(UTC))
        for holder in (ALICE, AGENT):
            self.issue(holder)
        self.revoked: set[int] = set()
        certfile, keyfile, cafile = (folder / name for name in ("agent.pem", "agent.key", "ca.pem"))
        host = Host(pod("p", container("web")))
        host.sync()
        self.server = AgentServer(
            *("127.0.0.1", 0),
            runtime=host.runtime,
            guard=OperatorGuard(certfile, keyfile, cafile, self.revoked),
            usage=lambda: USAGE,
        )

    def issue(self, holder: Profile, *, authority: Authority | None = None, age: int = 0, folder: str = "") -> None:
        """`age` in days; a certificate lives for 365."""
        now = datetime.now(UTC) - timedelta(days=age)
        name = files.file_name(holder.common_name)
        files.issue_into(self.folder / folder, name, authority or self.authority, holder, now=now)

    def as_(self, name: str, *, node: str = "n1", cafile: str = "ca.pem") -> Trust:
        cert, key = (str(self.folder / f"{name}.{kind}") for kind in ("pem", "key"))
        return Mutual(node, str(self.folder / cafile), cert, key)

    def ask(self, trust: Trust) -> object:
        return AgentClient(f"https://127.0.0.1:{self.server.port}", trust).stats()

    def exec(self, trust: Trust) -> AgentExec:
        client = AgentClient(f"https://127.0.0.1:{self.server.port}", trust)
        return client.exec("default", "p", "web", ("sh",), stdin=True)

    def refusal(self, trust: Trust) -> str:
        with pytest.raises(PodlaneError) as refused:
            self.ask(trust)
        return str(refused.value).replace(f"reach agent 127.0.0.1:{self.server.port}: ", "")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    configure("error")  # else each refusal is told at length
    node = Node(tmp_path / "pki")
    yield node
    threading.Thread(target=node.server.close).start()  # takes up to half a second


def test_operators_and_the_administrator_are_answered(node: Node) -> None:
    node.issue(profile.administrator())
    assert node.ask(node.as_("alice")) == USAGE
    assert node.ask(node.as_("root")) == USAGE


def test_a_revoked_certificate_is_refused_and_another_of_the_same_name_is_not(node: Node) -> None:
    revoked = files.read(node.folder / "alice.pem").serial_number
    node.revoked.add(revoked)
    with pytest.raises(AgentError) as refused:
        node.ask(node.as_("alice"))
    assert refused.value.status == 403
    assert str(refused.value) == f'certificate of "alice": it is revoked (serial number {revoked:x})'
    node.issue(ALICE)
    assert node.ask(node.as_("alice")) == USAGE


def test_a_session_ends_when_its_certificate_is_revoked_and_no_other_does(node: Node) -> None:
    node.issue(profile.operator("bob"))
    revoked, kept = (node.exec(node.as_(name)) for name in ("alice", "bob"))
    node.server.end_sessions(set())
    for session in (revoked, kept):
        session.send(b"hello")
        assert next(session.output()) == ("stdout", b"hello")
    node.server.end_sessions({files.read(node.folder / "alice.pem").serial_number})
    assert list(revoked.output()) == []
    kept.send(b"still here")
    assert next(kept.output()) == ("stdout", b"still here")
    kept.close()


def test_another_node_is_told_why_not(node: Node) -> None:
    node.issue(profile.node_daemon("netd", "n2"))
    with pytest.raises(AgentError) as refused:
        node.ask(node.as_("netd"))
    assert refused.value.status == 403
    assert str(refused.value) == (
        'certificate of "netd@n2": expected organization podlane:operators, got "podlane:nodes"; '
        "the agent's API is for operators only"
    )


def test_who_is_not_of_this_cluster_gets_no_answer(node: Node) -> None:
    foreign = Authority.create(node.folder / "foreign", now=datetime.now(UTC))
    node.issue(ALICE, authority=foreign, folder="foreign")
    assert node.refusal(node.as_("foreign/alice")) == "it refused our certificate: another authority has signed it"
    told = node.refusal(node.as_("foreign/alice", cafile="foreign/ca.pem"))
    assert told.startswith("its certificate is not to be trusted: ")
    fingerprint = ensure_certificate(node.folder, "n1").fingerprint
    assert node.refusal(Pinned("token", fingerprint)).startswith("another certificate (SHA-256 ")


def test_a_token_counts_for_nothing(node: Node) -> None:
    shown = ssl.PEM_cert_to_DER_cert((node.folder / "agent.pem").read_text())
    assert "none was shown" in node.refusal(Pinned("token", fingerprint_of(shown)))


def test_expired_certificates_of_either_side(node: Node) -> None:
    node.issue(ALICE, age=366)
    assert node.refusal(node.as_("alice")) == "it refused our certificate: it has expired"
    node.issue(ALICE)
    node.issue(AGENT, age=366)
    assert node.refusal(node.as_("alice")) == "its certificate is not to be trusted: certificate has expired"


def test_an_agent_answers_for_its_own_node_only(node: Node) -> None:
    told = node.refusal(node.as_("alice", node="n2"))
    assert told.startswith("its certificate is not to be trusted: Hostname mismatch")
    assert "n2.agent.podlane" in told


def test_a_rotation_reaches_an_agent_that_runs(node: Node) -> None:
    (node.folder / "old.pem").write_bytes((node.folder / "ca.pem").read_bytes())
    node.authority.succeeded(now=datetime.now(UTC)).save()
    node.authority = Authority.load(node.folder)
    node.issue(ALICE)
    assert node.ask(node.as_("alice")) == USAGE
    node.issue(AGENT)
    assert node.ask(node.as_("alice", cafile="old.pem")) == USAGE  # by the cross-certificate
    node.authority.alone().save()
    assert node.ask(node.as_("alice")) == USAGE

    before = node.folder / "agent.pem"
    os.replace(before, node.folder / "kept.pem")
    before.write_text("half a certif")
    assert node.ask(node.as_("alice")) == USAGE  # with the one before


def test_files_that_cannot_be_used_are_named(node: Node) -> None:
    with pytest.raises(PodlaneError, match=r"load certificate of the agent's API: .*/none\.pem cannot be read"):
        OperatorGuard(node.folder / "none.pem", node.folder / "agent.key", node.folder / "ca.pem")
    assert node.refusal(node.as_("nobody")).startswith("load certificates ")


def top(node: Node, port: int, fingerprint: str) -> tuple[int, list[str]]:
    """`podlane top nodes` by alice, where Node n1 tells that its agent is at this port and has this fingerprint."""
    clock = ScriptedClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock=clock)
    registry.init_cluster(ClusterConfig(agent_token=TOKEN))
    status = NodeStatus(
        addresses=(NodeAddress(type="InternalIP", address="127.0.0.1"),),
        daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=port)),
        allocatable={"cpu": "2", "memory": "1Gi"},
    )
    metadata = ObjectMeta(name="n1", annotations={AGENT_CERTIFICATE_ANNOTATION: fingerprint})
    registry.create(NodeObject(metadata=metadata, status=status))
    mine = {"cafile": "ca.pem", "certfile": "alice.pem", "keyfile": "alice.key"}
    config = StoreConfig(**{option: str(node.folder / name) for option, name in mine.items()})  # type: ignore[arg-type]
    session = Session(connect=lambda _: store, clock=clock, etcd=config)
    done = CliRunner().invoke(cli, ["top", "nodes", "--no-headers"], obj=session, prog_name="podlane")
    return done.exit_code, done.output.split()


def test_the_command_shows_its_certificate_and_never_goes_back_to_the_token(node: Node) -> None:
    """Also where the Node tells of a fingerprint: who took the node could write it, to be handed the token."""
    impostor = ensure_certificate(node.folder, "n1")
    assert top(node, node.server.port, impostor.fingerprint) == (0, ["n1", "5m", "0%", "1Mi", "0%"])

    seen: list[Subject] = []

    class Impostor(TokenGuard):
        def check(self, subject: Subject, authorization: str) -> None:
            seen.append(subject)
            super().check(subject, authorization)

    server = AgentServer(*("127.0.0.1", 0), runtime=FakeRuntime(), guard=Impostor(impostor, lambda: TOKEN))
    code, output = top(node, server.port, impostor.fingerprint)
    assert code == 1
    assert "its certificate is not to be trusted: self-signed certificate" in " ".join(output)
    assert not seen
    threading.Thread(target=server.close).start()


def test_an_agent_that_is_restarted_has_its_port_at_once(node: Node) -> None:
    """Though it was the one that closed a connection, which the kernel then remembers."""
    node.revoked.add(files.read(node.folder / "alice.pem").serial_number)
    with pytest.raises(AgentError):
        node.ask(node.as_("alice"))
    node.server.close()
    node.server = AgentServer("127.0.0.1", node.server.port, runtime=FakeRuntime(), guard=node.server.guard)
