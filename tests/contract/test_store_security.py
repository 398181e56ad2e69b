"""TLS, client certificates and passwords, with an etcd that insists on them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from etcd3 import etcdrpc

from podlane.errors import Invalid, PermissionDenied, StoreUnavailable
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import Put, Store
from podlane.store.mirror import Mirror
from tests.conftest import Etcd, running

pytestmark = pytest.mark.contract

WAIT = 20.0


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._build(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.cafile = self._write("ca.pem", certificate.sign(self._key, hashes.SHA256()))

    def issue(self, name: str) -> tuple[str, str]:
        """(certificate file, key file) for 127.0.0.1, for servers and clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._build(subject, key.public_key()).add_extension(addresses, critical=False)
        certificate = builder.add_extension(usage, critical=False).sign(self._key, hashes.SHA256())
        keyfile = self._folder / f"{name}.key"
        keyfile.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self._write(f"{name}.pem", certificate), str(keyfile)

    def _build(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def _write(self, name: str, certificate: x509.Certificate) -> str:
        path = self._folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)


@contextlib.contextmanager
def opened(config: StoreConfig) -> Iterator[Store]:
    store = connect(config)
    try:
        yield store
    finally:
        store.close()


# --- TLS ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def tls_etcd(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Wants a client certificate of the authority."""
    certfile, keyfile = authority.issue("server")
    extra = ("--cert-file", certfile, "--key-file", keyfile, "--client-cert-auth")
    extra += ("--trusted-ca-file", authority.cafile)
    client_cert, client_key = authority.issue("client")
    etcd = Etcd(
        tmp_path_factory.mktemp("tls-etcd"),
        extra=extra,
        scheme="https",
        cafile=authority.cafile,
        certfile=client_cert,
        keyfile=client_key,
    )
    with running(etcd):
        yield etcd


def test_tls_with_a_client_certificate(tls_etcd: Etcd) -> None:
    with opened(tls_etcd.client_config) as store:
        revision = store.txn([], [Put("/a", b"1")]).revision
        with store.watch("/", start_revision=revision) as watch:
            batch = watch.next(WAIT)
        assert batch is not None
        assert batch.events[0].kv.value == b"1"


def test_tls_refuses_strangers_both_ways(tls_etcd: Etcd, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other")
    certfile, keyfile = stranger.issue("client")
    mine, my_key = authority.issue("second")
    endpoints = tls_etcd.endpoints
    for config in (
        StoreConfig(endpoints=endpoints, cafile=authority.cafile),
        StoreConfig(endpoints=endpoints, cafile=authority.cafile, certfile=certfile, keyfile=keyfile),
        StoreConfig(endpoints=endpoints, cafile=stranger.cafile, certfile=mine, keyfile=my_key),
    ):
        with opened(config) as store, pytest.raises(StoreUnavailable):
            store.get("/a", timeout=1.0)


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"cafile: read .*/none: No such file"):
        connect(StoreConfig(endpoints=("https://127.0.0.1:1",), cafile=str(tmp_path / "none")))


# --- passwords ------------------------------------------------------------------------


@pytest.fixture
def guarded(etcd_folder: Path) -> Iterator[Etcd]:
    """Knows root, and `limited`, who may use /mine/ only; tokens live for 2 seconds."""
    with running(Etcd(etcd_folder, extra=("--auth-token-ttl", "2"))) as etcd:
        with grpc.insecure_channel(f"127.0.0.1:{etcd.members[0].client_port}") as channel:
            auth = etcdrpc.AuthStub(channel)
            for user in ("root", "limited"):
                auth.UserAdd(etcdrpc.AuthUserAddRequest(name=user, password=f"{user}-pw"))
                auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=user))
                auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=user, role=user))
            permission = {"permType": 2, "key": b"/mine/", "range_end": b"/mine0"}  # 2: read and write
            auth.RoleGrantPermission(etcdrpc.AuthRoleGrantPermissionRequest(name="limited", perm=permission))
            auth.AuthEnable(etcdrpc.AuthEnableRequest())
        yield etcd


def config_for(etcd: Etcd, username: str, password: str = "") -> StoreConfig:
    return StoreConfig(endpoints=etcd.endpoints, username=username, password=password or f"{username}-pw")


def test_a_user_may_do_what_its_role_may(guarded: Etcd) -> None:
    with opened(config_for(guarded, "limited")) as store:
        revision = store.txn([], [Put("/mine/a", b"1")]).revision
        with store.watch("/mine/", start_revision=revision) as watch:
            assert watch.next(WAIT) is not None
        for forbidden in (
            lambda: store.get("/other"),
            lambda: store.txn([], [Put("/other", b"")]),
            lambda: store.watch("/other", start_revision=1),
        ):
            with pytest.raises(PermissionDenied, match="permission denied"):
                forbidden()


@pytest.mark.parametrize(
    ("username", "password"), [("limited", "wrong"), ("nobody", "x"), ("", "")], ids=["wrong", "unknown", "none"]
)
def test_strangers_are_told_so(guarded: Etcd, username: str, password: str) -> None:
    config = config_for(guarded, username, password) if username else guarded.client_config
    with opened(config) as store, pytest.raises(PermissionDenied):
        store.get("/mine/a")


def test_an_expired_token_is_renewed(guarded: Etcd) -> None:
    with opened(config_for(guarded, "limited")) as store:
        revision = store.txn([], [Put("/mine/a", b"1")]).revision
        threading.Event().wait(5)
        store.txn([], [Put("/mine/b", b"1")])
        threading.Event().wait(5)
        with store.watch("/mine/", start_revision=revision) as watch:
            assert watch.next(WAIT) is not None


def test_a_mirror_goes_on_with_a_new_token(guarded: Etcd) -> None:
    with opened(config_for(guarded, "limited")) as store:
        changed, stop = threading.Event(), threading.Event()
        mirror = Mirror(store, "/mine/", decode=lambda kv: kv.value, on_change=changed.set, name="guarded")
        thread = threading.Thread(target=mirror.run, args=(stop,))
        thread.start()
        try:
            assert mirror.wait_synced(WAIT)
            guarded.stop()
            guarded.start()  # simple tokens do not outlive their etcd
            changed.clear()
            store.txn([], [Put("/mine/a", b"1")])
            assert changed.wait(WAIT)
            assert mirror.snapshot() == {"a": b"1"}
        finally:
            stop.set()
            thread.join(WAIT)


def test_a_password_does_no_harm_where_none_is_needed(shared_etcd: Etcd) -> None:
    with opened(config_for(shared_etcd, "anybody")) as store:
        assert store.get("/none") is None
