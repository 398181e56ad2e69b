"""What was signed and what is revoked, as the store holds it.

Owns: the records below /podlane-admin/issued/ and /podlane-admin/revoked/, and who writes them:
each server tells what it has signed, the administrator's command marks what is revoked, and
whoever has the authority's key signs the list of it (podlane.host.revoking). Invariant: a serial
number counts as revoked by its key alone, so a record that cannot be read still shuts somebody out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from podlane.errors import PodlaneError
from podlane.store import keys
from podlane.store.interface import DEFAULT_TIMEOUT, Delete, Get, KeyValue, Op, Put, Store

T = TypeVar("T")

_AT_ONCE = 100  # of the 128 operations of a transaction
_NO_SERIAL = 1 << 159
"""RFC 5280 has none from here on."""
_FOREVER = datetime(9999, 12, 31, tzinfo=UTC)


class Issued(msgspec.Struct, frozen=True, order=True):
    """A certificate that is out there: its serial number in hexadecimal, and when it ends."""

    serial: str
    ends: datetime

    @property
    def number(self) -> int:
        return int(self.serial, 16)


class Revoked(msgspec.Struct, frozen=True):
    """Whose certificate is revoked, until when it would have been good, and since when it is not."""

    name: str
    ends: datetime
    since: datetime


def read_issued(store: Store, common_name: str) -> list[Issued]:
    """What the servers have told of one name. Raises PodlaneError."""
    found = store.list(keys.issued_to_prefix(common_name)).items
    return [each for kv in found for each in _decoded(kv, list[Issued])]


def tell_issued(store: Store, server: str, issued: Mapping[str, Iterable[Issued]]) -> None:
    """Bring what this server has told to what it has signed, by name. Raises PodlaneError."""
    told = {kv.key: kv.value for kv in store.list(keys.ISSUED).items if kv.key.endswith(f"/{server}")}
    wanted = {keys.issued_key(name, server): msgspec.json.encode(sorted(found)) for name, found in issued.items()}
    ops: list[Op] = [Put(key, value) for key, value in wanted.items() if told.get(key) != value]
    ops += [Delete(key) for key in told if key not in wanted]
    _write(store, ops)


def read_revoked(store: Store, *, timeout: float = DEFAULT_TIMEOUT) -> dict[int, Revoked]:
    """By serial number. Raises StoreUnavailable, PermissionDenied."""
    return by_serial(store.list(keys.REVOKED, timeout=timeout).items)


def mark_revoked(store: Store, revoked: Mapping[int, Revoked]) -> None:
    """Raises StoreUnavailable, PermissionDenied."""
    _write(store, [Put(keys.revoked_key(serial), msgspec.json.encode(each)) for serial, each in revoked.items()])


def by_serial(found: Iterable[KeyValue]) -> dict[int, Revoked]:
    revoked: dict[int, Revoked] = {}
    for kv in found:
        try:
            serial = int(kv.key.removeprefix(keys.REVOKED), 16)
        except ValueError:
            continue
        if not 0 < serial < _NO_SERIAL:
            continue
        try:
            revoked[serial] = _decoded(kv, Revoked)
        except PodlaneError:
            revoked[serial] = Revoked("", _FOREVER, datetime.fromtimestamp(0, UTC))
    return revoked


def reads() -> list[Get]:
    """Of one transaction: all that is revoked, and the list of it."""
    return [Get(keys.REVOKED, prefix=True), Get(keys.REVOCATION_LIST)]


def read_list(store: Store) -> str:
    """The list that is signed; "" when there is none. Raises StoreUnavailable, PermissionDenied."""
    kv = store.get(keys.REVOCATION_LIST)
    return kv.value.decode("ascii", "replace") if kv is not None else ""


def _decoded(kv: KeyValue, form: type[T]) -> T:
    try:
        return msgspec.json.decode(kv.value, type=form)
    except msgspec.DecodeError as error:
        raise PodlaneError(f"read {kv.key}: {error}") from error


def _write(store: Store, ops: Sequence[Op]) -> None:
    for begin in range(0, len(ops), _AT_ONCE):
        store.txn([], ops[begin : begin + _AT_ONCE])
