"""`podlane pki revoke` before a real etcd and a real agent's port: who is shut out, and who is not."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPSConnection
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.cli.main import cli
from podlane.errors import PodlaneError, StoreUnavailable
from podlane.host.enrol import enrol_node, enrol_server
from podlane.pki import files, profile, revocations
from podlane.pki.authority import Authority
from podlane.runtime.clock import SystemClock
from podlane.runtime.log import configure
from podlane.store import keys
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Put, Store
from podlane.store.roles import ROOT, operator_role
from scheduler.agent.client import AgentClient, AgentError
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.guard import OperatorGuard
from scheduler.agent.revocations import Revocations
from scheduler.agent.server import AgentServer
from scheduler.agent.trust import Mutual
from tests.conftest import in_memory, running
from tests.contract.secured_etcd import SecuredEtcd, eventually

pytestmark = pytest.mark.contract

ADDRESS = ip_address("10.9.0.1")


class Cluster:
    """Server s1 and s2, node n1 with an agent's port, and what is issued by hand."""

    def __init__(self, etcd: SecuredEtcd, folder: Path) -> None:
        self.etcd, self.folder = etcd, folder
        with etcd.administration() as accounts, etcd.as_user(profile.administrator()) as store:
            store.txn([], [Put("/coreos.com/network/config", b'{"Network":"10.5.0.0/16"}')])
            accounts.ensure_role(operator_role())
            accounts.ensure_user(ROOT, [ROOT])
            enrol_server(store, accounts, server="s2", addresses=[ADDRESS])
            enrol_node(store, accounts, node="n1", addresses=[ADDRESS])
            accounts.enable_auth()
        agent = etcd.certificate(profile.node_daemon("agent", "n1"))
        self.store = connect(StoreConfig(endpoints=etcd.endpoints, **agent))  # type: ignore[arg-type]
        cafile = Path(agent["cafile"])
        self.heeded = Revocations(self.store, folder / "agent", cafile, SystemClock())
        guard = OperatorGuard(Path(agent["certfile"]), Path(agent["keyfile"]), cafile, self.heeded)
        self.server = AgentServer("127.0.0.1", 0, runtime=FakeRuntime(), guard=guard, usage=lambda: {"timestamp": 0})
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.heeded.run, args=(self.stop,))
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.store.close()
        self.server.close()

    def podlane(self, *args: str, code: int = 0) -> str:
        at = ("--dir", str(self.etcd.pki), *self.etcd.options())
        done = CliRunner().invoke(cli, ("pki", *args, *at), prog_name="podlane")
        assert done.exit_code == code, done.output
        return done.output

    def issued(self, *args: str) -> Path:
        folder = self.folder / args[1]
        self.podlane("issue", *args, "--out", str(folder))
        return folder

    def files(self, folder: Path, name: str) -> dict[str, str]:
        paths = {"cafile": folder / "ca.pem", "certfile": folder / f"{name}.pem", "keyfile": folder / f"{name}.key"}
        return {option: str(path) for option, path in paths.items()}

    @contextlib.contextmanager
    def client(self, folder: Path, name: str) -> Iterator[Store]:
        config = StoreConfig(endpoints=self.etcd.endpoints, **self.files(folder, name))  # type: ignore[arg-type]
        with contextlib.closing(connect(config)) as store:
            yield store

    def logs_refused(self, folder: Path, name: str) -> str:
        """What the agent says to who asks it; "" for an answer."""
        trust = Mutual("n1", **self.files(folder, name))
        try:
            AgentClient(f"https://127.0.0.1:{self.server.port}", trust).stats()
        except AgentError as error:
            return str(error)
        return ""

    def peer_refused(self, folder: Path) -> bool:
        context = ssl.create_default_context(cafile=self.etcd.pki / "ca.pem")
        context.load_cert_chain(folder / "etcd.pem", folder / "etcd.key")
        connection = HTTPSConnection("127.0.0.1", self.etcd.members[0].peer_port, timeout=30, context=context)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/members")
                return connection.getresponse().status != 200
            except OSError:
                return True


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    configure("error")
    with in_memory() as folder, running(SecuredEtcd(folder)) as etcd:  # type: ignore[type-var]
        cluster = Cluster(etcd, folder)  # type: ignore[arg-type]
        yield cluster
        cluster.close()


def refusal(store: Store) -> str:
    with pytest.raises(StoreUnavailable) as refused:
        store.get("/podlane/config", timeout=3)
    return str(refused.value)


def test_a_revoked_operator_is_refused_everywhere_and_comes_back_with_a_new_certificate(cluster: Cluster) -> None:
    alice, bob = cluster.issued("operator", "alice"), cluster.issued("operator", "bob")
    first = (alice / "alice.pem").read_text()
    cluster.issued("operator", "alice")  # renewed: the first one is good for a year still
    (alice / "first.pem").write_text(first)
    (alice / "first.key").write_text((alice / "alice.key").read_text())
    for name in ("alice", "first"):
        assert cluster.logs_refused(alice, name) == ""

    told = cluster.podlane("revoke", "alice", "--role", "operator")
    assert "on the list of revoked certificates: 2 more;" in told
    for name in ("alice", "first"):
        eventually(lambda name=name: "it is revoked" in cluster.logs_refused(alice, name), "the refusal")  # type: ignore[misc]
    assert cluster.logs_refused(bob, "bob") == ""

    cluster.issued("operator", "alice")
    assert cluster.logs_refused(alice, "alice") == ""
    with cluster.client(alice, "alice") as store:
        store.get("/podlane/config")
    with cluster.client(alice, "first") as store:  # though she has a user again
        eventually(lambda: "/first.pem revoked?" in refusal(store), "that etcd refuses, and why")
    assert re.findall(r"^(\S+) .*REVOKED", cluster.podlane("list"), re.MULTILINE) == ["alice", "alice"]

    assert "revoke operator nobody: etcd has no such user" in cluster.podlane(
        "revoke", "nobody", "--role", "operator", code=1
    )
    cluster.podlane("revoke", "alice", "--role", "operator")
    told = cluster.podlane("revoke", "alice", "--role", "operator")  # the same again finishes what was interrupted
    assert "certificates: 0 more;" in told


def test_a_removed_server_is_no_peer_any_more(cluster: Cluster) -> None:
    server = cluster.issued("etcd", "s2", "--address", str(ADDRESS))
    assert not cluster.peer_refused(server)
    cluster.podlane("revoke", "s2", "--role", "server")
    assert cluster.peer_refused(server)
    own = cluster.etcd.certificate(profile.etcd("s1", ["127.0.0.1"]))
    folder = cluster.folder / "s1"
    folder.mkdir()
    for option, name in (("certfile", "etcd.pem"), ("keyfile", "etcd.key")):
        (folder / name).write_text(Path(own[option]).read_text())
    assert not cluster.peer_refused(folder)


def test_only_the_administrator_revokes_and_a_node_reads_nothing_but_the_list(cluster: Cluster) -> None:
    for key in (keys.REVOCATION_LIST, keys.revoked_key(7), keys.issued_key("alice", "s1")):
        with pytest.raises(PodlaneError, match="permission denied"):
            cluster.store.txn([], [Put(key, b"forged")])
    with pytest.raises(PodlaneError, match="permission denied"):
        cluster.store.list(keys.REVOKED)


def test_of_roots_certificates_the_one_that_is_used_stays(cluster: Cluster) -> None:
    leaked = cluster.issued("root", "root")
    assert cluster.logs_refused(leaked, "root") == ""
    assert "certificates: 1 more;" in cluster.podlane("revoke", "root", "--role", "operator")
    eventually(lambda: "it is revoked" in cluster.logs_refused(leaked, "root"), "the refusal")
    assert "certificates: 0 more;" in cluster.podlane("revoke", "root", "--role", "operator")


def test_a_new_authority_goes_on_with_the_list(cluster: Cluster) -> None:
    """Also for an agent that has the old bundle only, and for etcd."""
    carol = cluster.issued("operator", "carol")
    authority = Authority.load(cluster.etcd.pki)
    (cluster.folder / "old.pem").write_text(authority.bundle)
    before = revocations.read(cluster.etcd.list_file.read_text())
    authority.succeeded(now=datetime.now(UTC)).save()
    assert cluster.logs_refused(carol, "carol") == ""
    cluster.podlane("revoke", "carol", "--role", "operator")

    text = cluster.etcd.list_file.read_text()
    new = revocations.read(text)
    assert new.number > before.number
    assert new.serials == before.serials | {files.read(carol / "carol.pem").serial_number}
    late = Revocations(cluster.store, cluster.folder / "late", cluster.folder / "old.pem", SystemClock())
    late.heed(text.encode())
    assert files.read(carol / "carol.pem").serial_number in late
    eventually(lambda: "it is revoked" in cluster.logs_refused(carol, "carol"), "the refusal")
    dave = cluster.issued("operator", "dave")
    with cluster.client(dave, "dave") as store:
        store.get("/podlane/config")  # etcd reads the new list, the chain behind it and all
