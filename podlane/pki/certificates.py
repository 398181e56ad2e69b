"""Certificates as such: how one is built, read and compared.

Owns: every use of X.509 extensions, and the rules for keys that are signed.
Invariant: what is made here is what OpenSSL, BoringSSL and Go's crypto/tls accept
without exceptions (RFC 5280): random serials, key identifiers, critical basic
constraints and key usage, and a beginning a little in the past, for hosts whose
clocks differ.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podlane.errors import PodlaneError
from podlane.pki.profile import Profile

SKEW = timedelta(minutes=10)
"""How far a host's clock may be behind the authority's."""
_SHORTEST_RSA = 2048

_USES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}

PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def read_key(pem: str) -> PrivateKey:
    """Raises ValueError unless it is an EC key without a password."""
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except TypeError as error:
        raise ValueError("the key has a password") from error
    if not isinstance(key, PrivateKey):
        raise ValueError("expected an EC key")
    return key


def certificate_pem(*certificates: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates)


def read_certificates(pem: str) -> list[x509.Certificate]:
    """All in the text, in their order. Raises ValueError when there is none."""
    return x509.load_pem_x509_certificates(pem.encode())


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of its DER form, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(name: x509.Name) -> str:
    return _attribute(name, NameOID.COMMON_NAME)


def organization(name: x509.Name) -> str:
    return _attribute(name, NameOID.ORGANIZATION_NAME)


def new_request(key: PrivateKey, name: str) -> str:
    """A CSR. The name in it is for people: the authority puts in what it decides."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def requested_key(csr_pem: str) -> CertificatePublicKeyTypes:
    """The public key of a CSR whose sender has the private one. Raises PodlaneError."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid, key = request.is_signature_valid, request.public_key()
    except Exception as error:  # beside ValueError: UnsupportedAlgorithm, and what a parser of strangers' bytes raises
        raise PodlaneError(f"read certificate request: {error}") from error
    if not valid:
        raise PodlaneError("read certificate request: its signature is not by the key in it")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _SHORTEST_RSA:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    raise PodlaneError(
        f"read certificate request: expected an EC key on P-256 or P-384, Ed25519 or RSA of "
        f"{_SHORTEST_RSA} bits and more, got {_kind(key)}"
    )


def authority_certificate(
    name: x509.Name,
    public_key: CertificatePublicKeyTypes,
    *,
    issuer: x509.Certificate | None,
    issuer_key: PrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.Certificate:
    """Of an authority: its own (`issuer` None), or a cross-certificate by another."""
    usage = _key_usage(key_cert_sign=True, crl_sign=True, digital_signature=False)
    builder = (
        _builder(name, public_key, name if issuer is None else issuer.subject, issuer_key, begin=begin, end=end)
        # one below the root is a cross-certificate, and below that are leaves only
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if issuer is None else 0), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def leaf_certificate(
    profile: Profile,
    public_key: CertificatePublicKeyTypes,
    *,
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, profile.organization),
            x509.NameAttribute(NameOID.COMMON_NAME, profile.common_name),
        ]
    )
    wanted = [_USES[word] for word, given in (("server", profile.server), ("client", profile.client)) if given]
    builder = (
        _builder(subject, public_key, issuer.subject, issuer_key, begin=begin, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(wanted), critical=False)
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in profile.dns]
    names += [x509.IPAddress(ip_address(address)) for address in profile.addresses]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def profile_of(certificate: x509.Certificate) -> Profile:
    """What a certificate of ours says. Raises ValueError, Invalid for one that is not of ours."""
    dns: list[str] = []
    addresses: list[str] = []
    with suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = names.get_values_for_type(x509.DNSName)
        addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    used = uses(certificate)
    return Profile(
        common_name(certificate.subject),
        organization(certificate.subject),
        tuple(dns),
        tuple(addresses),
        server="server" in used,
        client="client" in used,
    )


def uses(certificate: x509.Certificate) -> list[str]:
    """What it is for: `server`, `client`, and `authority` for one that signs."""
    found: list[str] = []
    with suppress(x509.ExtensionNotFound):
        extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        found = [word for word, use in _USES.items() if use in extended]
    with suppress(x509.ExtensionNotFound):
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            found.append("authority")
    return found


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _builder(
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    *,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(signer, critical=False)
    )


def _key_usage(*, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """Empty when there is none. Raises ValueError when there are several: which one counts would be a guess."""
    found = name.get_attributes_for_oid(oid)
    if len(found) > 1:
        raise ValueError(f"expected one {oid.dotted_string} in a subject, got {len(found)}")
    return str(found[0].value) if found else ""


def _kind(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC on {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey")
