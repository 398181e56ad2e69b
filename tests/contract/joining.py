"""A cluster that hosts can join: etcd as on real hosts, an authority, and a join service on a real port."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from podlane.host.enrol import enrol_server
from podlane.host.join import Joined, join
from podlane.host.joindaemon import Announcement
from podlane.host.joinmessages import HostRole
from podlane.host.joinserver import Certificate, JoinServer
from podlane.host.joinservice import JoinService
from podlane.host.jointokens import ca_hash, create
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from podlane.runtime.clock import Clock, SystemClock
from podlane.store.administration import Administration
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Put
from tests.contract.secured_etcd import SecuredEtcd, eventually

NETWORK = b'{"Network":"10.5.0.0/16"}'


class JoinableCluster:
    """Server s1 of it. `hosts` is where the folders of those that join are made."""

    def __init__(self, etcd: SecuredEtcd, hosts: Path) -> None:
        self.etcd = etcd
        self.hosts = hosts
        self.root = connect(etcd.client_config)
        self.accounts = Administration(etcd.client_config)
        self.root.txn([], [Put("/coreos.com/network/config", NETWORK)])
        enrol_server(self.root, self.accounts, server="s1", addresses=[ip_address("10.9.0.1")])
        self.accounts.enable_auth()
        of = profile.join("s1", ["127.0.0.1"])
        files.issue_into(etcd.pki, "join", self.authority, of, now=datetime.now(UTC))
        self.url = ""  # of the service that runs

    @property
    def authority(self) -> Authority:
        return Authority.load(self.etcd.pki)

    @contextlib.contextmanager
    def serving(self, **options: float) -> Iterator[JoinServer]:
        clock: Clock = SystemClock()
        config = self.config(self.etcd.pki, "join")
        with contextlib.closing(connect(config)) as store, contextlib.closing(Administration(config)) as accounts:
            service = JoinService(store, accounts, self.etcd.pki, clock=clock)
            certificate = Certificate(self.etcd.pki)
            server = JoinServer("127.0.0.1", 0, service=service, certificate=certificate, **options)  # type: ignore[arg-type]
            before, self.url = self.url, f"https://127.0.0.1:{server.port}"
            announcement = Announcement(store, "s1", (self.url,), service, clock)
            stop = threading.Event()
            threads = [threading.Thread(target=each, args=(stop,)) for each in (server.serve, announcement.run)]
            for each in threads:
                each.start()
            try:
                eventually(lambda: announcement.not_ready() is None, "the service's announcement")
                yield server
            finally:
                stop.set()
                for each in threads:
                    each.join(30)
                self.url = before

    def token(self, *, role: HostRole = "node", uses: int = 1, node: str = "", authority: bool = False) -> str:
        token, _ = create(
            self.root,
            authority_hash=ca_hash(self.authority.bundle),
            now=datetime.now(UTC),
            role=role,
            uses=uses,
            node=node,
            authority=authority,
        )
        return str(token)

    def join(
        self, name: str, token: str, address: str, *, into: str = "", role: HostRole = "node", with_node: bool = False
    ) -> Joined:
        folder = self.hosts / (into or name)
        return join(self.url, token, name, [address], folder, role=role, with_node=with_node)

    def config(self, folder: Path, daemon: str) -> StoreConfig:
        """As a daemon of the host with this folder has it."""
        return StoreConfig(
            endpoints=self.etcd.endpoints,
            cafile=str(folder / "ca.pem"),
            certfile=str(folder / f"{daemon}.pem"),
            keyfile=str(folder / f"{daemon}.key"),
        )

    def close(self) -> None:
        self.root.close()
        self.accounts.close()
