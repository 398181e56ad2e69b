"""Join tokens: what is pasted, what the store keeps of it, and how its uses are counted.

Owns: the form ID.SECRET.CAHASH and the keys below …/join-tokens/. Invariants: the store has
a salted hash of the secret and never the secret; a token ends by its etcd lease, whoever
runs or not; a use is counted by compare-and-swap before anything is signed, and the same
name does not count twice, so that a host whose first try was cut off can try again.
CAHASH is the SHA-256 of the authority's public key (SPKI, RFC 7469), by which a host knows
the service before it has the authority's certificate. The idea is kubeadm's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from podlane.errors import Conflict, NotFound, PodlaneError, UsageError
from podlane.host.joinmessages import HostRole
from podlane.host.options import name_error
from podlane.pki import certificates as c
from podlane.store import keys
from podlane.store.interface import Compare, Delete, Get, KeyValue, LeaseNotFound, Put, Store

DEFAULT_TTL = 24 * 3600
MAX_TTL = 30 * 24 * 3600
MAX_USES = 1000

_ID_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # without those that look like others
_ID_LENGTH = 8
_SECRET_BYTES = 16
_RACES = 20
_FORM = re.compile(r"([a-z0-9]{8})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is pasted."""

    id: str
    secret: str
    ca_hash: str

    def __str__(self) -> str:
        return f"{self.id}.{self.secret}.{self.ca_hash}"

    def __repr__(self) -> str:
        """Without the secret."""
        return f"JoinToken({self.id})"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises UsageError."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                "read join token: expected ID.SECRET.CAHASH (8, 22 and 43 characters) as `podlane join-token` prints "
                f"it, got {len(text.strip())} characters; was all of it pasted?"
            )
        return cls(*match.groups())


class TokenRecord(msgspec.Struct, frozen=True, rename="camel"):
    """What the store keeps. `node`: the only name it is good for, "" for any. `used`: the names it was used for.

    `authority`: whether a server that joins with it is given the authority's key. Times are RFC 3339.
    """

    salt: str
    hash: str
    role: HostRole
    uses: int
    created: str
    expires: str
    node: str = ""
    authority: bool = False
    used: tuple[str, ...] = ()

    def opens(self, secret: str) -> bool:
        """Whether this is its secret; takes the same time whatever of it is right."""
        return hmac.compare_digest(_hash(self.salt, secret), self.hash)

    def has_room_for(self, name: str) -> bool:
        return name in self.used or len(self.used) < self.uses

    @property
    def is_server(self) -> bool:
        return self.role == "server"


@dataclass(frozen=True, slots=True)
class Found:
    """A token in the store."""

    id: str
    record: TokenRecord
    key: str
    revision: int
    lease: int


def ca_hash(bundle_pem: str) -> str:
    """The hash of the bundle's first authority, which is the one that signs. Raises PodlaneError."""
    return ca_hashes(bundle_pem)[0]


def ca_hashes(bundle_pem: str) -> list[str]:
    """Of each in the bundle. Raises PodlaneError."""
    try:
        found = [each.public_key() for each in c.read_certificates(bundle_pem)]
        forms = [each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for each in found]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PodlaneError(f"read authority's certificate: {error}") from error
    return [_text(hashlib.sha256(form).digest()) for form in forms]


def create(
    store: Store,
    *,
    authority_hash: str,
    now: datetime,
    ttl: int = DEFAULT_TTL,
    uses: int = 1,
    node: str = "",
    role: HostRole = "node",
    authority: bool = False,
) -> tuple[JoinToken, TokenRecord]:
    """Make a token. `ttl` is in seconds. Raises UsageError, StoreUnavailable, PermissionDenied."""
    _check(ttl=ttl, uses=uses, node=node, role=role, authority=authority)
    token = JoinToken(
        "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH)),
        secrets.token_urlsafe(_SECRET_BYTES),
        authority_hash,
    )
    salt = secrets.token_hex(16)
    end = datetime.fromtimestamp(now.timestamp() + ttl, UTC)
    record = TokenRecord(
        salt, _hash(salt, token.secret), role, uses, _rfc3339(now), _rfc3339(end), node=node, authority=authority
    )
    key = keys.join_token_key(token.id, server=role == "server")
    lease = store.grant(ttl)
    store.txn([Compare.absent(key)], [Put(key, msgspec.json.encode(record), lease)])
    return token, record


def _check(*, ttl: int, uses: int, node: str, role: HostRole, authority: bool) -> None:
    if not 60 <= ttl <= MAX_TTL:
        raise UsageError(f"make join token: expected a time to live from 1m to {MAX_TTL // 3600}h, got {ttl} s")
    if node and (error := name_error(node)):
        raise UsageError(f"make join token: {error}")
    if not 1 <= uses <= MAX_USES:
        raise UsageError(f"make join token: expected 1 to {MAX_USES} uses, got {uses}")
    if node and uses != 1:
        raise UsageError(f"make join token: one for {node} alone has one use, got {uses}")
    if authority and role != "server":
        raise UsageError("make join token: only a server can be given the authority's key")


def find(store: Store, identity: str) -> Found | None:
    """The token of this id, whatever its role. Raises StoreUnavailable."""
    return next((_found(kv) for read in _read(store, identity) for kv in read), None)


def listing(store: Store) -> list[Found]:
    """All there are, the oldest first."""
    reads = store.txn([], [Get(keys.JOIN_TOKENS, prefix=True), Get(keys.SERVER_JOIN_TOKENS, prefix=True)]).reads
    return sorted((_found(kv) for read in reads for kv in read), key=lambda each: (each.record.created, each.id))


def delete(store: Store, identity: str) -> None:
    """Raises NotFound."""
    there = [kv for read in _read(store, identity) for kv in read]
    if not there:
        raise NotFound(f"delete join token {identity}: there is none (or it has expired)")
    for kv in there:
        store.txn([], [Delete(kv.key)])
        if kv.lease:
            store.revoke(kv.lease)


def count_use(store: Store, found: Found, name: str) -> Literal["counted", "counted before", "used up", "gone"]:
    """Take one use of the token for this name. Raises Conflict, StoreUnavailable."""
    for _ in range(_RACES):
        if name in found.record.used:
            return "counted before"
        if not found.record.has_room_for(name):
            return "used up"
        record = msgspec.structs.replace(found.record, used=(*found.record.used, name))
        unchanged = Compare.modified_at(found.key, found.revision)
        put = Put(found.key, msgspec.json.encode(record), found.lease)
        try:
            result = store.txn([unchanged], [put], [Get(found.key)])
        except LeaseNotFound:
            return "gone"
        if result.succeeded:
            return "counted"
        if not result.reads[0]:
            return "gone"
        found = _found(result.reads[0][0])
    raise Conflict(f"use join token {found.id}: it changes all the time, {_RACES} attempts failed")


def _read(store: Store, identity: str) -> tuple[tuple[KeyValue, ...], ...]:
    return store.txn([], [Get(keys.join_token_key(identity, server=server)) for server in (False, True)]).reads


def _found(kv: KeyValue) -> Found:
    try:
        record = msgspec.json.decode(kv.value, type=TokenRecord)
    except msgspec.DecodeError as error:
        raise PodlaneError(f"read {kv.key}: {error}") from error
    server = kv.key.startswith(keys.SERVER_JOIN_TOKENS)
    if server != record.is_server:  # operators may write node tokens only, whatever they write into one
        raise PodlaneError(f"read {kv.key}: a token of role {record.role} does not belong there")
    return Found(kv.key.rpartition("/")[2], record, kv.key, kv.mod_revision, kv.lease)


def _hash(salt: str, secret: str) -> str:
    # the secret has 128 random bits: a slow hash would add nothing
    return hashlib.sha256(f"{salt}.{secret}".encode()).hexdigest()


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
