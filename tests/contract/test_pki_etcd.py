"""The authority's certificates before a real etcd: made by hand, and replaced under programs that run."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from click.testing import CliRunner
from secured_etcd import SecuredEtcd

from podlane.api.subnets import config_key
from podlane.cli.main import cli
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from podlane.store.administration import Administration
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Put, Store
from tests.conftest import Etcd, running

pytestmark = pytest.mark.contract


class Host:
    """A folder as /etc/podlane/pki, with an authority and what it gave out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder, now=datetime.now(UTC))

    def issue(self, holder: profile.Profile) -> None:
        files.issue_into(
            self.folder, files.file_name(holder.common_name), self.authority, holder, now=datetime.now(UTC)
        )

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def succeed(self) -> None:
        self.authority.succeeded(now=datetime.now(UTC)).save()
        self.authority = Authority.load(self.folder)

    def finish(self) -> None:
        self.authority.alone().save()
        self.authority = Authority.load(self.folder)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path / "pki")
    for holder in (profile.etcd("s1", ["127.0.0.1"]), profile.scheduler("s1")):
        made.issue(holder)
    return made


@pytest.fixture
def etcd(host: Host, etcd_folder: Path) -> Iterator[Etcd]:
    extra = ("--cert-file", host.path("etcd.pem"), "--key-file", host.path("etcd.key"), "--client-cert-auth")
    extra += ("--trusted-ca-file", host.path("ca.pem"))
    names = {"cafile": "ca.pem", "certfile": "scheduler.pem", "keyfile": "scheduler.key"}
    paths = {option: host.path(name) for option, name in names.items()}
    with running(Etcd(etcd_folder, extra=extra, scheme="https", **paths)) as etcd:
        yield etcd


def put(store: Store, value: bytes) -> None:
    store.txn([], [Put("/a", value)])


def test_a_rotation_under_etcd_and_a_client_that_runs_on(host: Host, etcd: Etcd) -> None:
    old = (host.folder / "ca.pem").read_bytes()
    store = connect(etcd.client_config)
    put(store, b"1")

    host.succeed()
    host.issue(profile.scheduler("s1"))
    fresh = connect(etcd.client_config)
    put(fresh, b"2")  # etcd trusts the old bundle only, and shows its old certificate
    fresh.close()

    host.issue(profile.etcd("s1", ["127.0.0.1"]))
    (host.folder / "old.pem").write_bytes(old)
    behind = {"cafile": host.path("old.pem"), "certfile": host.path("scheduler.pem")}
    with_old = connect(StoreConfig(etcd.endpoints, keyfile=host.path("scheduler.key"), **behind))
    put(with_old, b"3")  # etcd shows its new one, which the old bundle accepts
    with_old.close()

    host.finish()
    etcd.stop()
    etcd.start()  # with the new bundle: it takes the new authority's certificates only
    found = store.get("/a", timeout=60)  # the client began with the old ones
    assert found is not None
    assert found.value == b"3"
    store.close()


def test_what_is_issued_by_hand_has_its_place_in_etcd(host: Host, etcd: Etcd, tmp_path: Path) -> None:
    ours = etcd.client_config
    at = ("--etcd-endpoints", *ours.endpoints, "--etcd-cafile", ours.cafile)
    at += ("--etcd-certfile", ours.certfile, "--etcd-keyfile", ours.keyfile)

    def issue(*args: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ("pki", "issue", *args, "--dir", str(host.folder), *at), prog_name="podlane")
        assert done.exit_code == code, done.output
        return done.stderr

    with closing(connect(ours)) as store, closing(Administration(ours)) as accounts:
        store.txn([], [Put(config_key("/coreos.com/network"), b'{"Network": "10.98.0.0/16"}')])
        n1 = ("node", "n1", "--address", "192.168.1.1", "--out")
        told = issue(*n1, str(tmp_path / "n1"))
        assert re.fullmatch(r"node n1 has subnet 10\.98\.\d+\.0/24, and users netd@n1, proxyd@n1, agent@n1\n", told)
        assert issue(*n1, str(tmp_path / "n1")) == told  # the same again changes nothing
        assert accounts.user_roles("agent@n1")
        refused = issue(*n1, str(tmp_path / "other"), code=2)
        assert refused == "error: issue node n1: there is one, known by another key; --replace takes this one instead\n"
        assert issue(*n1, str(tmp_path / "other"), "--replace") == told

        issue("operator", "alice", "--out", str(tmp_path / "alice"))
        issue("scheduler", "s2", "--out", str(tmp_path / "s2"))
        assert {user: accounts.user_roles(user) for user in ("alice", "scheduler@s2")} == {
            "alice": ("operator",),
            "scheduler@s2": ("scheduler",),
        }


def test_the_peer_port_is_for_peers_only(etcd_folder: Path) -> None:
    """They are all of one authority, and who is taken for a peer has all of etcd."""
    etcd = SecuredEtcd(etcd_folder)

    def ask(holder: profile.Profile) -> int:
        options = etcd.certificate(holder)
        context = ssl.create_default_context(cafile=options["cafile"])
        context.load_cert_chain(options["certfile"], options["keyfile"])
        connection = HTTPSConnection("127.0.0.1", etcd.members[0].peer_port, timeout=30, context=context)
        with closing(connection):
            connection.request("GET", "/members")
            return connection.getresponse().status

    with running(etcd):
        assert ask(profile.etcd("s1", ["127.0.0.1"])) == 200
        others = [profile.node_daemon(daemon, "n1") for daemon in profile.NODE_DAEMONS]
        others += [profile.administrator(), profile.scheduler("s1"), profile.join("s1", ["127.0.0.1"])]
        for other in others:
            with pytest.raises(OSError, match=r"alert|EOF|reset|[Cc]losed"):
                ask(other)
