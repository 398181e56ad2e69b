"""An etcd as on real hosts: mutual TLS for clients and peers, authentication on, users by their certificates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from podlane.host.emptylist import EMPTY_LIST
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from podlane.pki.profile import Profile
from podlane.pki.revocations import LIST_FILE
from podlane.store.administration import Administration
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Store
from tests.conftest import Etcd, Member

WAIT = 60.0


class SecuredEtcd(Etcd):
    """`pki` has the authority; each certificate is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.pki = folder / "pki"
        self.folder = folder
        self._authority = Authority.create(self.pki, now=datetime.now(UTC))
        own = self.certificate(profile.etcd("s1", ["127.0.0.1"]))
        self.list_file = self.pki / LIST_FILE
        self.list_file.write_text(EMPTY_LIST)
        self.flags = (
            *("--client-cert-auth", "--trusted-ca-file", own["cafile"]),
            *("--cert-file", own["certfile"], "--key-file", own["keyfile"]),
            *("--peer-client-cert-auth", "--peer-trusted-ca-file", own["cafile"]),
            *("--peer-cert-file", own["certfile"], "--peer-key-file", own["keyfile"]),
            *("--peer-cert-allowed-hostname", profile.ETCD_PEER_HOSTNAME),
            *("--client-crl-file", str(self.list_file), "--peer-crl-file", str(self.list_file)),
        )
        super().__init__(folder / "etcd", 0, **self.certificate(profile.administrator()))
        self.members = [self.new_member("s1")]

    def new_member(self, name: str) -> Member:
        return Member(name, self.folder / "etcd", self.flags, "https", "https")

    def certificate(self, of: Profile) -> dict[str, str]:
        """The options of a StoreConfig."""
        name = of.common_name
        if not (self.pki / f"{name}.pem").exists():
            files.issue_into(self.pki, name, self._authority, of, now=datetime.now(UTC))
        return {
            "cafile": str(self.pki / "ca.pem"),
            "certfile": str(self.pki / f"{name}.pem"),
            "keyfile": str(self.pki / f"{name}.key"),
        }

    def config(self, of: Profile) -> StoreConfig:
        return StoreConfig(endpoints=self.endpoints, **self.certificate(of))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def as_user(self, of: Profile) -> Iterator[Store]:
        with contextlib.closing(connect(self.config(of))) as store:
            yield store

    @contextlib.contextmanager
    def administration(self) -> Iterator[Administration]:
        with contextlib.closing(Administration(self.client_config)) as admin:
            yield admin

    def options(self, of: Profile | None = None) -> list[str]:
        """Those of `podlane`."""
        given = self.certificate(of or profile.administrator())
        return [
            *("--etcd-endpoints", ",".join(self.endpoints), "--etcd-cafile", given["cafile"]),
            *("--etcd-certfile", given["certfile"], "--etcd-keyfile", given["keyfile"]),
        ]


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
