"""What the authority signs and what it does not, and the files that come of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from podlane.errors import AlreadyExists, Invalid, NotFound, PodlaneError
from podlane.pki import certificates as c
from podlane.pki import files, holdings, profile
from podlane.pki.authority import Authority
from podlane.pki.profile import Profile
from podlane.runtime.command import run

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
YEAR = timedelta(days=365)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki", now=NOW)


def csr(key: object, name: str = "who asks") -> str:
    """A request that asks for more than it gets."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, profile.OPERATORS),
        ]
    )
    wanted = x509.SubjectAlternativeName([x509.DNSName("etcd-peer.podlane")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wanted, critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def said(pem: str) -> str:
    """A certificate as openssl prints it."""
    text = run(
        ["openssl", "x509", "-noout", "-subject", "-ext", "subjectAltName,extendedKeyUsage,keyUsage,basicConstraints"],
        input=pem,
        timeout=60,
    ).stdout
    return "\n".join(line.strip() for line in text.splitlines())


def test_a_certificate_says_what_the_profile_does_and_nothing_of_the_request(authority: Authority) -> None:
    pem = authority.sign(csr(c.new_key(), "root"), profile.node_daemon("agent", "n1"), now=NOW)
    assert said(pem) == (
        "subject=O = podlane:nodes, CN = agent@n1\n"
        "X509v3 Basic Constraints: critical\nCA:FALSE\n"
        "X509v3 Key Usage: critical\nDigital Signature\n"
        "X509v3 Extended Key Usage:\nTLS Web Server Authentication, TLS Web Client Authentication\n"
        "X509v3 Subject Alternative Name:\nDNS:n1.agent.podlane"
    )


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (profile.administrator(), "podlane:operators root client"),
        (profile.operator("alice"), "podlane:operators alice client"),
        (profile.scheduler("s1"), "podlane:servers scheduler@s1 client"),
        (profile.node_daemon("netd", "n1"), "podlane:nodes netd@n1 client"),
        (profile.node_daemon("agent", "n1"), "podlane:nodes agent@n1 server client n1.agent.podlane"),
        (
            profile.etcd("s1", ["10.0.0.1"]),
            "podlane:servers etcd@s1 server client s1 localhost etcd-peer.podlane 10.0.0.1 127.0.0.1 ::1",
        ),
        (
            profile.join("s1", ["10.0.0.1"]),
            "podlane:servers join@s1 server client s1 localhost 10.0.0.1 127.0.0.1 ::1",
        ),
    ],
    ids=lambda value: value.common_name if isinstance(value, Profile) else "",
)
def test_who_is_what(authority: Authority, holder: Profile, text: str) -> None:
    signed = c.read_certificates(authority.sign(csr(c.new_key()), holder, now=NOW))[0]
    assert c.profile_of(signed) == holder
    uses = [use for use, given in (("server", holder.server), ("client", holder.client)) if given]
    assert " ".join((holder.organization, holder.common_name, *uses, *holder.dns, *holder.addresses)) == text
    run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-attime",
            str(int(NOW.timestamp())),
            "-CAfile",
            str(authority.folder / "ca.pem"),
        ],
        input=c.certificate_pem(signed),
        timeout=60,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: profile.node_daemon("agent", "n" * 59), "name: expected at most 58 characters, got 59"),
        (lambda: profile.node_daemon("agent", "a/b"), "name: expected a DNS name"),
        (lambda: profile.node_daemon("etcd", "n1"), "daemon: expected one of netd, proxyd, agent"),
        (lambda: profile.operator("netd@n1@x"), "name: expected a DNS name"),
        (lambda: profile.operator("scheduler@s1"), "name: expected a DNS name"),
        (lambda: profile.operator("root"), 'name: "root" is a part of Podlane'),
        (lambda: profile.etcd("s1", ["10.0.0"]), 'addresses: expected an IP address, got "10.0.0"'),
    ],
)
def test_what_no_certificate_may_say(make: object, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        make()  # type: ignore[operator]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("key", "refused"),
    [
        (ec.generate_private_key(ec.SECP256R1()), ""),
        (ec.generate_private_key(ec.SECP384R1()), ""),
        (ed25519.Ed25519PrivateKey.generate(), ""),
        (rsa.generate_private_key(65537, 2048), ""),
        (rsa.generate_private_key(65537, 1024), "RSA of 1024 bits"),
        (ec.generate_private_key(ec.SECP521R1()), "EC on secp521r1"),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA 2048", "RSA 1024", "P-521"],
)
def test_keys(authority: Authority, key: object, refused: str) -> None:
    if not refused:
        assert authority.sign(csr(key), profile.administrator(), now=NOW)
        return
    with pytest.raises(PodlaneError, match=f"read certificate request: expected an EC key .*, got {refused}"):
        authority.sign(csr(key), profile.administrator(), now=NOW)


def test_requests_that_are_none(authority: Authority) -> None:
    der = bytearray(x509.load_pem_x509_csr(csr(c.new_key()).encode()).public_bytes(Encoding.DER))
    der[-1] ^= 1  # of the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    for text in (
        forged,
        "",
        "not a request",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ):
        with pytest.raises(PodlaneError, match="read certificate request: "):
            authority.sign(text, profile.administrator(), now=NOW)
    assert authority.issued() == {}


def test_how_long_it_lasts(authority: Authority) -> None:
    def days(after: timedelta) -> tuple[int, int]:
        signed = c.read_certificates(authority.sign(csr(c.new_key()), profile.administrator(), now=NOW + after))[0]
        begin, end = signed.not_valid_before_utc, signed.not_valid_after_utc
        return (NOW + after - begin).seconds // 60, (end - NOW - after).days

    assert days(timedelta()) == (10, 365)  # minutes, for a clock that is behind
    assert days(9.5 * YEAR) == (10, 182)  # it does not outlive its authority
    with pytest.raises(
        PodlaneError, match=r"sign root: podlane authority .* expired .* `podlane pki rotate --authority`"
    ):
        days(11 * YEAR)


def test_files_and_who_may_read_them(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    files.issue_into(folder, "netd", authority, profile.node_daemon("netd", "n1"), now=NOW)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (folder, *folder.iterdir())}
    assert modes == {
        "pki": "0o700",
        "ca.key": "0o600",
        "ca.pem": "0o644",
        "ca.crt": "0o644",
        "issued": "0o700",
        "netd.key": "0o600",
        "netd.pem": "0o644",
    }
    assert files.expiry(folder / "netd.pem") == NOW + YEAR
    assert [*authority.issued()] == ["netd@n1"]


def test_a_renewal_keeps_the_key(authority: Authority) -> None:
    key, certificate = (authority.folder / f"netd.{kind}" for kind in ("key", "pem"))
    holder = profile.node_daemon("netd", "n1")
    files.issue_into(authority.folder, "netd", authority, holder, now=NOW)
    before = key.read_text(), certificate.read_text()
    files.issue_into(authority.folder, "netd", authority, holder, now=NOW + YEAR)
    assert key.read_text() == before[0]
    assert certificate.read_text() != before[1]


def test_a_certificate_for_another_key_is_not_stored(authority: Authority) -> None:
    files.request_for(authority.folder, "netd", "netd@n1")
    other = authority.sign(csr(c.new_key()), profile.node_daemon("netd", "n1"), now=NOW)
    with pytest.raises(PodlaneError, match=r"store certificate netd in .*: it is not for the key that is here"):
        files.store(authority.folder, "netd", other, authority.bundle)
    assert not (authority.folder / "netd.pem").exists()


def test_when_to_renew(authority: Authority) -> None:
    signed = c.read_certificates(authority.sign(csr(c.new_key()), profile.administrator(), now=NOW))[0]
    assert files.renewal_reason(signed, authority.bundle, NOW + timedelta(days=200)) is None
    assert files.renewal_reason(signed, authority.bundle, NOW + timedelta(days=300)) == "it ends at 2027-11-29"
    successor = authority.succeeded(now=NOW)
    assert files.renewal_reason(signed, successor.bundle, NOW) == f"{successor.name} signs now"


def test_an_authority_is_made_once(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists, match=r"ca\.key is there already, an authority"):
        Authority.create(authority.folder, now=NOW)
    elsewhere = tmp_path / "node"
    elsewhere.mkdir()
    (elsewhere / "ca.pem").write_text(authority.bundle)
    with pytest.raises(AlreadyExists, match="the bundle of an authority kept elsewhere"):
        Authority.create(elsewhere, now=NOW)
    with pytest.raises(NotFound, match=r"load authority: .*/node/ca\.key is not there"):
        Authority.load(elsewhere)


def test_an_authority_that_cannot_be_read(authority: Authority) -> None:
    file = authority.folder / "ca.key"
    good = file.read_text()
    for text, message in (
        (c.key_pem(c.new_key()) + authority.bundle, "the key is not that of the certificate"),
        (good[:200], "ca.key: "),
        ("", "ca.key: "),
    ):
        file.write_text(text)
        with pytest.raises(PodlaneError, match=f"load authority: .*{message}"):
            Authority.load(authority.folder)


def test_an_expired_authority_has_no_say_in_its_successor(authority: Authority) -> None:
    successor = authority.succeeded(now=NOW + 11 * YEAR)
    assert successor.previous is None
    assert len(c.read_certificates(successor.sign(csr(c.new_key()), profile.administrator(), now=NOW + 11 * YEAR))) == 1


def test_what_is_held_here_and_what_was_given(authority: Authority) -> None:
    for name, holder in (("etcd", profile.etcd("s1", [])), ("root", profile.administrator())):
        files.issue_into(authority.folder, name, authority, holder, now=NOW)
    authority.sign(csr(c.new_key()), profile.node_daemon("netd", "n1"), now=NOW)
    (authority.folder / "stray.pem").write_text(authority.bundle)  # without a key
    state = holdings.state_of(authority.folder, authority)
    assert [(leaf.common_name, leaf.file) for leaf in state.leaves] == [
        ("etcd@s1", "etcd"),
        ("root", "root"),
        ("netd@n1", ""),
    ]
    assert {leaf.signer for leaf in state.leaves} == {authority.name} == {state.signer}
    authority.forget("netd@n1")
    assert len(holdings.state_of(authority.folder, authority).leaves) == 2


def test_daemons_know_the_names_without_loading_what_signs() -> None:
    loaded = "import sys, scheduler.agent.cli, scheduler.agent.guard, scheduler.agent.trust"
    script = f"{loaded}; print('cryptography' in sys.modules)"
    assert run([sys.executable, "-c", script], timeout=60).stdout == "False\n"
