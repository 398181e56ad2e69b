"""Certificates that are renewed under running programs: real etcd, real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from podlane.pki import files, profile
from podlane.pki.authority import Authority
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
    put(store, b"4")  # the client began with the old ones
    store.close()
