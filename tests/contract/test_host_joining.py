"""Hosts that join, renew and leave: real sockets, a real etcd that asks everybody for a certificate."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from podlane.api.types import Service
from podlane.cli.main import cli
from podlane.errors import PermissionDenied, PodlaneError, StoreUnavailable
from podlane.host.emptylist import EMPTY_LIST
from podlane.host.enrol import read_hosts
from podlane.host.join import join
from podlane.host.joincall import ServiceUrl, authority_of
from podlane.host.joindaemon import widen_roles
from podlane.host.joinservice import JoinService, ServiceRecord
from podlane.host.renew import renew
from podlane.host.revoking import Keeper
from podlane.pki import certificates as c
from podlane.pki import files, profile, revocations
from podlane.pki.revocations import LIST_FILE
from podlane.runtime.clock import FakeClock, SystemClock
from podlane.store.config import connect
from podlane.store.interface import Delete, Put
from podlane.store.keys import join_service_key, prefix_for
from podlane.store.roles import OPERATOR, Role, operator_role
from tests.conftest import in_memory, running
from tests.contract.joining import JoinableCluster
from tests.contract.netd_hosts import Host, at_once
from tests.contract.secured_etcd import SecuredEtcd

pytestmark = pytest.mark.contract


@contextlib.contextmanager
def joinable(hosts: Path) -> Iterator[JoinableCluster]:
    with in_memory() as folder, running(SecuredEtcd(folder)) as etcd:
        found = JoinableCluster(etcd, hosts)  # type: ignore[arg-type]
        with found.serving():
            yield found
        found.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JoinableCluster]:
    """For all tests but that which replaces its authority."""
    with joinable(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def podlane(cluster: JoinableCluster, *argv: str) -> str:
    result = CliRunner().invoke(cli, [*argv, *cluster.etcd.options()], prog_name="podlane")
    assert result.exit_code == 0, result.output
    return result.stdout


def told(cluster: JoinableCluster, name: str, token: str, address: str, into: str) -> str:
    """Why it was not let in."""
    with pytest.raises(PodlaneError) as error:
        cluster.join(name, token, address, into=into)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_two_nodes_join_with_the_line_that_is_printed_and_each_writes_its_own(cluster: JoinableCluster) -> None:
    line = podlane(cluster, "join-token", "--uses", "2").split()
    assert line[:3] == ["sudo", "sh", "podlane-0.1.0.run"]
    assert line[line.index("--join") + 1] == cluster.url
    token = line[line.index("--token") + 1]
    joined = [cluster.join(f"web{n}", token, f"10.9.1.{n}") for n in (1, 2)]
    assert joined[0].endpoints == cluster.etcd.endpoints
    assert (joined[0].folder / "agent.key").stat().st_mode & 0o777 == 0o600
    assert not (joined[0].folder / "ca.key").exists()
    listed = json.loads(podlane(cluster, "join-token", "list", "-o", "json"))
    assert [(each["usedBy"], each["uses"]) for each in listed] == [(["web1", "web2"], 2)]

    with contextlib.closing(connect(cluster.config(joined[0].folder, "netd"))) as store:
        host = Host(store, 1, address=ip_address("10.9.1.1"))
        tenancy = host.ensure()
        assert (tenancy.subnets, tenancy.reserved) == (joined[0].subnets, True)
        host.killed()
        assert joined[1].subnets is not None
        with pytest.raises(PermissionDenied):
            store.txn([], [Put(f"/coreos.com/network/subnets/{joined[1].subnets.key}", b"x")])
        with pytest.raises(PermissionDenied):
            store.txn([], [Delete("/podlane-admin/", prefix=True)])
    podlane(cluster, "join-token", "delete", token)
    assert podlane(cluster, "join-token", "list") == ""


def test_a_server_of_a_later_version_lets_daemons_do_what_that_needs(cluster: JoinableCluster) -> None:
    joined = cluster.join("early", cluster.token(), "10.9.1.8")
    cluster.accounts.ensure_role(Role("agent"))  # as an earlier version made it, which knew nothing of services
    with contextlib.closing(connect(cluster.config(joined.folder, "agent"))) as store:
        with pytest.raises(PermissionDenied):
            store.list(prefix_for(Service))
        widen_roles(cluster.accounts, SystemClock(), threading.Event())
        assert store.list(prefix_for(Service)).items == ()


def test_operators_make_tokens_for_nodes_and_only_root_those_for_servers(cluster: JoinableCluster) -> None:
    cluster.accounts.ensure_role(operator_role())
    cluster.accounts.ensure_user("alice", [OPERATOR])
    alice = cluster.etcd.options(profile.operator("alice"))
    made = CliRunner().invoke(cli, ["join-token", *alice], prog_name="podlane")
    assert made.exit_code == 0, made.output
    assert cluster.join("of-alice", made.stdout.split()[-1], "10.9.1.9").subnets is not None
    refused = CliRunner().invoke(cli, ["join-token", "--role", "server", *alice], prog_name="podlane")
    assert refused.exit_code == 1
    assert "permission denied" in refused.stderr
    revoked = CliRunner().invoke(cli, ["pki", "revoke", "of-alice", *alice], prog_name="podlane")
    assert "permission denied" in revoked.stderr


def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(cluster: JoinableCluster) -> None:
    before = read_hosts(cluster.root)
    token = cluster.token()
    identity, secret, ca_hash = token.split(".")
    other = cluster.etcd.pki.parent / "other"
    wrong = f"{identity}.{secret[::-1]}.{ca_hash}"
    assert "the token is not known here" in told(cluster, "no1", wrong, "10.9.2.1", "no1")
    assert "its authority is not the one of the token" in told(
        cluster, "no1", f"{identity}.{secret}.{ca_hash[::-1]}", "10.9.2.1", "no1"
    )
    assert "the name s1 is a server's" in told(cluster, "s1", token, "10.9.2.1", "no1")
    assert "address 10.9.0.1 is server s1's" in told(cluster, "no1", token, "10.9.0.1", "no1")
    with pytest.raises(PodlaneError, match=r"join: https://127\.0\.0\.1:1: Connection refused"):
        join("https://127.0.0.1:1", token, "no1", ["10.9.2.1"], other)
    slow = FakeClock((datetime.now(UTC) - timedelta(minutes=12)).timestamp())
    with pytest.raises(PodlaneError, match=r"this host's clock is \d+ minutes behind the server's"):
        join(cluster.url, token, "no1", ["10.9.2.1"], other, clock=slow)
    with pytest.raises(PodlaneError, match=r"TLS: .*is this the join service\?"):
        join(cluster.etcd.endpoints[0], token, "no1", ["10.9.2.1"], other)
    assert list((cluster.hosts / "no1").glob("*")) == []
    assert not other.exists()
    assert read_hosts(cluster.root) == before

    cluster.join("once", token, "10.9.2.2")
    assert "the token is used up (by once)" in told(cluster, "no1", token, "10.9.2.1", "no1")
    assert "there is a node once already" in told(cluster, "once", cluster.token(), "10.9.2.2", "no1")
    (kept,) = [kv for kv in cluster.root.list("/podlane/join-tokens/").items if kv.key.endswith(identity)]
    cluster.root.revoke(kept.lease)  # as when its time is over
    assert "the token is not known here: it has expired" in told(cluster, "no2", token, "10.9.2.3", "no2")


def test_a_host_whose_first_try_was_cut_off_gets_the_rest_with_the_same_token(cluster: JoinableCluster) -> None:
    token = cluster.token()
    first = cluster.join("cut", token, "10.9.3.1")
    for each in (*first.folder.glob("*.pem"), first.folder / "join.json"):
        each.unlink()  # the answer was lost; the keys are there
    cluster.accounts.delete_user("proxyd@cut")  # and it had not got to the end
    again = cluster.join("cut", token, "10.9.3.1")
    assert again.subnets == first.subnets
    assert cluster.accounts.user_roles("proxyd@cut") is not None


def test_of_many_that_join_at_once_with_one_use_one_is_let_in(cluster: JoinableCluster) -> None:
    token = cluster.token()
    failures = at_once([lambda n=n: cluster.join(f"race{n}", token, f"10.9.4.{n}") for n in range(1, 5)])  # type: ignore[misc]
    assert len(failures) == 3
    assert len([name for name in read_hosts(cluster.root).nodes if name.startswith("race")]) == 1


def test_a_machine_made_anew_takes_its_name_back_with_a_token_for_it(cluster: JoinableCluster) -> None:
    old = cluster.join("again", cluster.token(), "10.9.5.1")
    new = cluster.join("again", cluster.token(node="again"), "10.9.5.2", into="anew")
    assert new.subnets == old.subnets
    with pytest.raises(PodlaneError, match="renew: again was enrolled anew with another key since"):
        renew(old.folder, now=datetime.now(UTC))
    assert renew(new.folder, now=datetime.now(UTC)).reasons == {}


def test_a_revoked_node_can_do_nothing_at_once_and_does_not_come_back(cluster: JoinableCluster) -> None:
    stolen = cluster.join("stolen", cluster.token(), "10.9.6.1")
    with contextlib.closing(connect(cluster.config(stolen.folder, "agent"))) as store:
        store.get("/podlane/config")
        pki = str(cluster.etcd.pki)
        result = CliRunner().invoke(cli, ["pki", "revoke", "stolen", "--dir", pki, *cluster.etcd.options()])
        assert (result.exit_code, result.stdout) == (0, "node/stolen revoked\n"), result.output
        with pytest.raises(PermissionDenied):
            store.get("/podlane/config")
    assert "agent@stolen" not in cluster.authority.issued()
    with pytest.raises(PodlaneError, match="renew: stolen is not enrolled any more"):
        renew(stolen.folder, now=datetime.now(UTC))
    assert "node stolen was revoked at" in told(cluster, "stolen", cluster.token(), "10.9.6.1", "stolen")
    assert cluster.join("heir", cluster.token(), "10.9.6.1").subnets is not None


def test_what_is_marked_without_the_authoritys_key_is_signed_by_a_join_service_and_renewal_brings_it(
    cluster: JoinableCluster, tmp_path: Path
) -> None:
    gone = cluster.join("gone", cluster.token(), "10.9.9.1")
    server = cluster.join("s4", cluster.token(role="server"), "10.9.0.4", role="server").folder
    (server / LIST_FILE).write_text(EMPTY_LIST)
    keeper = Keeper(cluster.root, "s1", cluster.etcd.pki, lambda: cluster.authority, SystemClock())
    keeper.once()
    assert "node/gone revoked" in podlane(cluster, "pki", "revoke", "gone", "--dir", str(tmp_path))
    keeper.once()
    serials = {files.read(file).serial_number for file in gone.folder.glob("*.pem") if file.name != "ca.pem"}
    assert serials <= revocations.read(cluster.etcd.list_file.read_text()).serials
    assert renew(server, now=datetime.now(UTC)).revoked
    assert serials <= revocations.read((server / LIST_FILE).read_text()).serials
    assert not renew(server, now=datetime.now(UTC)).revoked
    podlane(cluster, "pki", "revoke", "s4", "--role", "server", "--dir", str(tmp_path))
    with pytest.raises(PodlaneError, match="renew: s4 is not enrolled any more"):
        renew(server, now=datetime.now(UTC))


def test_renewal_and_a_change_of_authority_reach_a_node(tmp_path: Path) -> None:
    with joinable(tmp_path) as cluster:
        _renew_through_a_rotation(cluster)


def _renew_through_a_rotation(cluster: JoinableCluster) -> None:
    folder = cluster.join("renews", cluster.token(), "10.9.7.1").folder
    now = datetime.now(UTC)
    first = files.read(folder / "netd.pem")
    assert renew(folder, now=now).changed == set()
    later = renew(folder, now=now + timedelta(days=250))
    assert set(later.reasons) == {"netd", "proxyd", "agent"}
    assert files.read(folder / "netd.pem").serial_number != first.serial_number

    token = cluster.token()
    rotate = ("pki", "rotate", "--authority", "--dir", str(cluster.etcd.pki))
    assert "make a new authority" in podlane(cluster, *rotate)
    assert cluster.join("meanwhile", token, "10.9.7.2").subnets is not None  # knows the old authority only
    begun = renew(folder, now=now)
    assert begun.changed == {"netd.pem", "proxyd.pem", "agent.pem", "ca.pem"}
    assert not begun.distrusted
    with contextlib.closing(connect(cluster.config(folder, "netd"))) as store:
        assert store.get("/coreos.com/network/config") is not None  # etcd has the old bundle still

    assert podlane(cluster, *rotate, "--force") == "trust the authority before no longer\n"
    ended = renew(folder, now=now)
    assert (ended.changed, ended.distrusted) == ({"ca.pem"}, True)
    assert c.read_certificates((folder / "ca.pem").read_text()) == [cluster.authority.certificate]
    assert "its authority is not the one of the token" in told(cluster, "late", token, "10.9.7.3", "late")


def test_another_server_joins_and_with_the_authoritys_key_lets_others_join(cluster: JoinableCluster) -> None:
    plain = cluster.join("s2", cluster.token(role="server"), "10.9.0.2", role="server", with_node=True)
    assert {path.name for path in plain.folder.glob("*.pem")} == {
        *("ca.pem", "etcd.pem", "join.pem", "scheduler.pem", "netd.pem", "proxyd.pem", "agent.pem")
    }
    assert not (plain.folder / "ca.key").exists()
    assert set(renew(plain.folder, now=datetime.now(UTC), force=True).reasons) == {
        *("etcd", "scheduler", "join", "netd", "proxyd", "agent")
    }
    token = cluster.token(role="server", authority=True)
    with_key = cluster.join("s3", token, "10.9.0.3", role="server")
    assert (with_key.folder / "ca.key").stat().st_mode & 0o777 == 0o600
    with contextlib.closing(connect(cluster.config(with_key.folder, "join"))) as store:
        assert set(read_hosts(store).servers) == {"s1", "s2", "s3"}
        service = JoinService(store, cluster.accounts, with_key.folder)
        assert service.authority().fingerprint == cluster.authority.fingerprint
        newer = ServiceRecord((cluster.url,), "another", "9999-01-01T00:00:00Z", "1")
        cluster.root.txn([], [Put(join_service_key("s9"), msgspec.json.encode(newer))])
        with pytest.raises(StoreUnavailable, match=r"the authority was replaced on s9 .*: copy .*ca\.key from there"):
            service.authority()
        cluster.root.txn([], [Delete(join_service_key("s9"))])
    with contextlib.closing(connect(cluster.config(with_key.folder, "scheduler"))) as store:
        store.txn([], [Put("/registry/pods/default/x", b"")])
        with pytest.raises(PermissionDenied):
            read_hosts(store)
        store.txn([], [Delete("/registry/pods/default/x")])


def test_a_node_is_no_join_service(cluster: JoinableCluster, tmp_path: Path) -> None:
    """A stolen node listens where hosts come to join: what it shows is by the right authority and yet refused."""
    folder = cluster.join("liar", cluster.token(), "10.9.8.1").folder
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "agent.pem", folder / "agent.key")
    body = (folder / "ca.pem").read_bytes()
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    heard: list[bytes] = []

    def lie(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
                heard.append(wrapped.recv(65536))
                wrapped.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        failures = at_once(
            [
                lambda: lie(listener),
                lambda: join(url, cluster.token(), "victim", ["10.9.8.2"], tmp_path / "victim"),
            ]
        )
    assert [str(each) for each in failures] == [f'join: {url}: it is "agent@liar" and not a join service']
    assert all(b"/v1/join" not in each for each in heard)


# ---- strangers -------------------------------------------------------------------------------------


def test_whatever_strangers_do_hosts_can_join(cluster: JoinableCluster) -> None:
    with cluster.serving() as server:
        at = ("127.0.0.1", server.port)
        silent = [socket.create_connection(at, source_address=("127.0.0.2", 0)) for _ in range(40)]
        for request, status in (
            (b"garbage\r\n\r\n", b"Bad request syntax"),
            (b"GET / HTTP/1.0\r\n\r\n", b"404"),
            (b"DELETE /v1/join HTTP/1.0\r\n\r\n", b"501"),
            (b"POST /v1/join HTTP/1.0\r\n\r\n", b"411"),
            (b"POST /v1/join HTTP/1.0\r\nContent-Length: 99999999\r\n\r\n", b"413"),
            (b'POST /v1/join HTTP/1.0\r\nContent-Length: 14\r\n\r\n{"token": "x"}', b"400"),
            (b"POST /v1/join HTTP/1.0\r\nContent-Length: 60000\r\n\r\n" + b'{"x": ' + b"[" * 59_994, b"400"),
            (b"POST /v1/join HTTP/1.0\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
            (b"POST /v1/renew HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", b"401"),
        ):
            assert status in _answer(server.port, request), request
        flood = _answer(server.port, b"POST /v1/join HTTP/1.0\r\n" + b"X: y\r\n" * 30_000)
        assert b" 200 " not in flood
        assert cluster.join("patient", cluster.token(), "10.9.9.1").subnets is not None
        for each in silent:
            each.close()


def test_who_says_nothing_or_half_of_it_is_not_waited_for(cluster: JoinableCluster) -> None:
    with cluster.serving(request_timeout=0.5) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        half = _half_a_request(server.port)
        assert (_received(half), _received(silent)) == (b"", b"")
        half.close()
        silent.close()


def _half_a_request(port: int) -> ssl.SSLSocket:
    while True:  # on a machine that stands still for long enough the handshake is not waited for either
        with contextlib.suppress(OSError):
            connection = _connected(port)
            connection.sendall(b"POST /v1/join HTTP/1.0\r\nContent-Length: 50\r\n\r\n{")
            return connection


def _connected(port: int) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60))


def _answer(port: int, request: bytes) -> bytes:
    """The answer, or what there is of it when the server has had enough."""
    with _connected(port) as connection:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(request)
        return b"".join(iter(lambda: _received(connection), b""))


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except (ConnectionError, ssl.SSLError):
        return b""


def test_the_authority_is_given_to_whoever_knows_its_hash(cluster: JoinableCluster) -> None:
    ca_hash = cluster.token().rpartition(".")[2]
    found = authority_of(ServiceUrl.parse(cluster.url), ca_hash, datetime.now(UTC))
    assert c.read_certificates(found) == [cluster.authority.certificate]
