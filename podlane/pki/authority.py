"""The cluster's authority: one key, what it has signed, and its successor.

Owns: in its folder `ca.key` (the key, its certificate and, of the authority before,
the cross-certificate and, while that is trusted, its own), and what follows from it:
`ca.pem` (whom to trust), `ca.crt` (its own certificate) and `issued/` (the
certificates of each name that are good still, the last one first). Invariants: `ca.key` is
replaced as a whole, so an interruption leaves the old state or the new; what is signed is a
Profile and the public key of a request, nothing else of it; a certificate is written down
before anybody has it, so whatever is out there can be revoked.

A new authority puts a cross-certificate by the one before behind each certificate,
so those who have the old bundle only accept it as well: nobody has to be served first,
and who reads the bundle at its start only (etcd) need not start at once. See
docs/adr/0021.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from podlane.errors import AlreadyExists, NotFound, PodlaneError
from podlane.pki import certificates as c
from podlane.pki import revocations
from podlane.pki.profile import Profile
from podlane.runtime.atomic import write_atomic

KEY_FILE = "ca.key"
BUNDLE_FILE = "ca.pem"
CERTIFICATE_FILE = "ca.crt"
ISSUED = "issued"

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365


class Before(NamedTuple):
    """The authority before: what it says of this one, and, while it is trusted still, its own certificate."""

    cross: x509.Certificate
    certificate: x509.Certificate | None = None


class Authority:
    """As it was when it was loaded: a daemon loads it anew for each use, which is cheap."""

    def __init__(
        self, folder: Path, key: c.PrivateKey, certificate: x509.Certificate, before: Before | None = None
    ) -> None:
        self.folder = folder
        self._key = key
        self.certificate = certificate
        self.before = before

    @classmethod
    def create(cls, folder: Path, *, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
        """Make one in `folder`. Raises AlreadyExists when there is one, there or elsewhere, PodlaneError."""
        for name, what in ((KEY_FILE, "an authority"), (BUNDLE_FILE, "the bundle of an authority kept elsewhere")):
            if (folder / name).exists():
                raise AlreadyExists(f"make authority in {folder}: {name} is there already, {what}")
        private_folder(folder)
        key = c.new_key()
        authority = cls(folder, key, _own_certificate(key, now, days))
        authority.save()
        return authority

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority in `folder`. Raises NotFound when there is none, PodlaneError when it cannot be read."""
        file = folder / KEY_FILE
        try:
            text = file.read_text()
            key = c.read_key(text)
            certificate, *others = c.read_certificates(text)
            if certificate.public_key() != key.public_key():
                raise ValueError("the key is not that of the certificate")
            return cls(folder, key, certificate, Before(*others) if others else None)
        except FileNotFoundError as error:
            raise NotFound(f"load authority: {file} is not there") from error
        except OSError as error:
            raise PodlaneError(f"load authority: read {file}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise PodlaneError(f"load authority: {file}: {error}") from error

    @property
    def name(self) -> str:
        return c.common_name(self.certificate.subject)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of its certificate, in hexadecimal."""
        return c.fingerprint(self.certificate)

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """The bundle's certificates: its own first."""
        return (self.certificate, self.previous) if self.previous else (self.certificate,)

    @property
    def previous(self) -> x509.Certificate | None:
        """That of the authority before, until the rotation has ended."""
        return self.before.certificate if self.before else None

    @property
    def bundle(self) -> str:
        return c.certificate_pem(*self.trusted)

    def sign(self, csr_pem: str, profile: Profile, *, now: datetime, days: int = LEAF_DAYS) -> str:
        """The certificate and what it needs of a chain. It does not outlive the authority. Raises PodlaneError."""
        public_key = c.requested_key(csr_pem)
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        if end <= now:
            raise PodlaneError(
                f"sign {profile.common_name}: {self.name} expired at {end:%Y-%m-%d}; "
                "`podlane pki rotate --authority` makes another"
            )
        leaf = c.leaf_certificate(
            profile, public_key, issuer=self.certificate, issuer_key=self._key, begin=now - c.SKEW, end=end
        )
        with self._writing_down():
            good = [each for each in self.issued_to(profile.common_name) if each.not_valid_after_utc > now]
            self._write_down(profile.common_name, [leaf, *good])
        return c.certificate_pem(leaf, *self._cross(now))

    def sign_list(self, revoked: Mapping[int, datetime], *, number: int, now: datetime) -> str:
        """The list of revoked certificates, with what it needs of a chain behind it."""
        text = revocations.sign(revoked, number=number, issuer=self.certificate, issuer_key=self._key, now=now)
        return text + c.certificate_pem(*self._cross(now))

    def succeeded(self, *, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
        """Its successor, which is trusted beside it from now on; `save` makes it so.

        An expired one has no say in it: whoever it signed for has to join anew.
        """
        key = c.new_key()
        certificate = _own_certificate(key, now, days)
        if self.certificate.not_valid_after_utc <= now:
            return Authority(self.folder, key, certificate)
        cross = c.authority_certificate(
            certificate.subject,
            key.public_key(),
            issuer=self.certificate,
            issuer_key=self._key,
            begin=now - c.SKEW,
            end=self.certificate.not_valid_after_utc,
        )
        return Authority(self.folder, key, certificate, Before(cross, self.certificate))

    def alone(self) -> Authority:
        """It, without trust in the one before; `save` makes it so."""
        return Authority(self.folder, self._key, self.certificate, self.before and Before(self.before.cross))

    def issued(self) -> dict[str, x509.Certificate]:
        """The last certificate it has signed for each name. Raises PodlaneError."""
        return {name: found[0] for name, found in self.all_issued().items()}

    def all_issued(self) -> dict[str, list[x509.Certificate]]:
        """Those of each name that were good when its last one was signed, that one first. Raises PodlaneError."""
        files = sorted((self.folder / ISSUED).glob("*.pem"))
        return {name: found for file in files if (found := self.issued_to(name := file.name.removesuffix(".pem")))}

    def issued_to(self, common_name: str) -> list[x509.Certificate]:
        """As all_issued, of one name; none for a name that was not signed. Raises PodlaneError."""
        file = self._record_of(common_name)
        try:
            return c.read_certificates(file.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise PodlaneError(f"read {file}: {error}") from error

    def forget(self, common_name: str) -> None:
        """Take a name from `issued`, as its holder is gone."""
        self._record_of(common_name).unlink(missing_ok=True)

    def forget_revoked(self, serials: Collection[int]) -> None:
        """Take these certificates from `issued`, as they count for nothing any more. Raises PodlaneError."""
        for name, found in self.all_issued().items():
            if any(each.serial_number in serials for each in found):
                with self._writing_down():
                    self._write_down(name, [e for e in self.issued_to(name) if e.serial_number not in serials])

    def save(self) -> None:
        """Make the files say it; the first one counts, the others follow from it."""
        known = (self.certificate, *(each for each in self.before or () if each is not None))
        write_atomic(self.folder / KEY_FILE, c.key_pem(self._key) + c.certificate_pem(*known), mode=0o600)
        self.publish()

    def publish(self) -> None:
        """The files that follow from `ca.key`; a rotation may have been interrupted before they were written."""
        for file, text in self._following():
            if not _is(file, text):
                write_atomic(file, text)

    def is_published(self) -> bool:
        return all(_is(file, text) for file, text in self._following())

    def _cross(self, now: datetime) -> tuple[x509.Certificate, ...]:
        """Expired, it is of no use to anybody, and some would stumble over it."""
        return (self.before.cross,) if self.before and self.before.cross.not_valid_after_utc > now else ()

    def _record_of(self, common_name: str) -> Path:
        return self.folder / ISSUED / f"{common_name}.pem"

    def _write_down(self, common_name: str, certificates: list[x509.Certificate]) -> None:
        if certificates:
            write_atomic(self._record_of(common_name), c.certificate_pem(*certificates))
        else:
            self.forget(common_name)

    @contextmanager
    def _writing_down(self) -> Iterator[None]:
        """The join service and a command may sign for one name at the same moment. Raises PodlaneError."""
        folder = self.folder / ISSUED
        private_folder(folder)
        try:
            lock = (folder / ".lock").open("w")
        except OSError as error:
            raise PodlaneError(f"lock {folder}: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _following(self) -> tuple[tuple[Path, str], ...]:
        own = c.certificate_pem(self.certificate)
        return (self.folder / BUNDLE_FILE, self.bundle), (self.folder / CERTIFICATE_FILE, own)


def _is(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except (OSError, ValueError):
        return False


def private_folder(folder: Path) -> None:
    """Make it for its owner only; one that is there stays as it is. Raises PodlaneError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PodlaneError(f"make folder {folder}: {error.strerror}") from error


def _own_certificate(key: c.PrivateKey, now: datetime, days: int) -> x509.Certificate:
    # a name of its own, or a chain could not be told from that of the authority before
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"podlane authority {x509.random_serial_number():040x}"[:26])]
    )
    return c.authority_certificate(
        name, key.public_key(), issuer=None, issuer_key=key, begin=now - c.SKEW, end=now + timedelta(days=days)
    )
