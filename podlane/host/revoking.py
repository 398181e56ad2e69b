"""Revocation of certificates: from a name to a list that an authority has signed, on every server.

Owns: the step from what is marked as revoked in the store to the list of it, and the file that
etcd reads. Invariants: the marks are the truth and a list follows from them, so whoever has the
authority's key may sign it, at any time and again: after a rotation, and when an entry's
certificate has expired; a list that is the same is not signed anew, and without anything
revoked there is none; nobody goes back to a list of a smaller number. See docs/adr/0025.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from podlane.errors import Conflict, PodlaneError
from podlane.host.emptylist import EMPTY_LIST
from podlane.host.layout import PKI, REVOCATION_LIST
from podlane.pki import revocations as lists
from podlane.pki.authority import ISSUED, Authority
from podlane.pki.holdings import trusted_here
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock
from podlane.runtime.fileversions import FileVersions
from podlane.runtime.log import Repetition, get_logger
from podlane.store import keys, revocations
from podlane.store.interface import Compare, Delete, Op, Put, Store
from podlane.store.revocations import Issued, Revoked

PAUSE = 5.0
"""Seconds between looks at what is revoked."""
_RACES = 10

_log = get_logger("revocations")


def issued(authority: Authority) -> dict[str, list[Issued]]:
    """What this authority has signed, by name. Raises PodlaneError."""
    return {
        name: [Issued(f"{each.serial_number:x}", each.not_valid_after_utc) for each in found]
        for name, found in authority.all_issued().items()
    }


def mark(
    store: Store, names: Iterable[str], authority: Authority | None, now: datetime, *, spared: int = 0
) -> dict[int, Revoked]:
    """Mark what was signed for these names, here or by another server, as revoked; return what was not before.

    `spared` is the serial number of one that stays good. Raises PodlaneError.
    """
    here = issued(authority) if authority is not None else {}
    known = revocations.read_revoked(store)
    new = {
        each.number: Revoked(name, each.ends, now)
        for name in names
        for each in (*here.get(name, ()), *revocations.read_issued(store, name))
        if each.number not in known and each.number != spared and each.ends > now
    }
    revocations.mark_revoked(store, new)
    return new


def is_marked(store: Store, names: Collection[str]) -> bool:
    """Whether anything of these names is revoked. Raises PodlaneError."""
    return any(each.name in names for each in revocations.read_revoked(store).values())


def sign(store: Store, authority: Authority, now: datetime) -> str:
    """Bring the list to what is marked, and return it; "" when there is none. Raises PodlaneError."""
    for _ in range(_RACES):
        marks, kvs = store.txn([], revocations.reads()).reads
        revoked = revocations.by_serial(marks)
        wanted = {serial: each.since for serial, each in revoked.items() if each.ends > now}
        expired: list[Op] = [Delete(keys.revoked_key(serial)) for serial in revoked if serial not in wanted]
        kv = kvs[0] if kvs else None
        there = kv.value.decode("ascii", "replace") if kv is not None else ""
        if _says(there, wanted, authority, now):
            return there
        number = max(int(now.timestamp()), _number(there) + 1)  # by the clock, for a restore takes numbers back
        text = authority.sign_list(wanted, number=number, now=now)
        compare = [Compare.modified_at(keys.REVOCATION_LIST, kv.mod_revision if kv is not None else 0)]
        if store.txn(compare, [Put(keys.REVOCATION_LIST, text.encode()), *expired[:100]]).succeeded:
            _log.info("list of revoked certificates signed", number=number, certificates=len(wanted))
            return text
    raise Conflict(f"sign list of revoked certificates: it changes all the time, {_RACES} attempts failed")


def list_file(folder: Path) -> Path:
    """Where the list is that belongs to a folder of keys; etcd, which is not root, may not look into a host's."""
    return Path(REVOCATION_LIST) if folder == Path(PKI) else folder / lists.LIST_FILE


def keep(folder: Path, text: str, trusted: Collection[x509.Certificate], now: datetime) -> bool:
    """Put a list where the folder has one (etcd reads it at each connection), if it is newer than that.

    Raises PodlaneError, also for one that none of the `trusted` stands behind.
    """
    file = list_file(folder)
    if not text or not file.exists():
        return False
    try:
        before = lists.checked(file.read_text(), trusted, now).number
    except (OSError, ValueError, PodlaneError):
        before = -1
    if lists.checked(text, trusted, now).number <= before:
        return False
    write_atomic(file, text)
    return True


def heed(authority: Authority, text: str) -> None:
    """What counts for nothing keeps no rotation waiting, and is not shown as good. Raises PodlaneError."""
    if text:
        authority.forget_revoked(lists.read(text).serials)


def mend(folder: Path) -> None:
    """Where etcd lets nobody in, as its list was lost or spoilt: begin anew with the empty one. Raises PodlaneError."""
    file = list_file(folder)
    if not file.parent.exists():
        return  # a host without etcd
    try:
        lists.read(file.read_text())
    except (OSError, ValueError, PodlaneError) as error:
        write_atomic(file, EMPTY_LIST)
        _log.warning("list of revoked certificates was lost, begun anew", file=str(file), error=str(error))


class Keeper:
    """A server's part: it tells what it has signed, signs the list, and keeps etcd's copy.

    `authority` gives the one that signs now. `run` is the body of one thread.
    """

    def __init__(
        self, store: Store, server: str, folder: Path, authority: Callable[[], Authority], clock: Clock
    ) -> None:
        self._store = store
        self._server = server
        self._folder = folder
        self._authority = authority
        self._clock = clock
        self._versions = FileVersions([folder / ISSUED])
        self._told = False
        self._heeded = ""
        self._repetition = Repetition()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.once()
                self._repetition.over()
            except PodlaneError as error:
                news = self._repetition.is_news(str(error), self._clock.monotonic())
                (_log.warning if news else _log.debug)("revocations not kept", error=str(error), retry_in=PAUSE)
            self._clock.wait(stop, PAUSE)

    def once(self) -> None:
        """Raises PodlaneError."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        mend(self._folder)
        try:
            authority = self._authority()
        except PodlaneError:  # another server's is newer, and signs
            keep(self._folder, revocations.read_list(self._store), trusted_here(self._folder), now)
            raise
        self._tell(authority)
        if text := sign(self._store, authority, now):
            keep(self._folder, text, authority.trusted, now)
            if text != self._heeded:
                heed(authority, text)
                self._heeded = text

    def _tell(self, authority: Authority) -> None:
        if self._versions.changed() or not self._told:
            self._told = False
            revocations.tell_issued(self._store, self._server, issued(authority))
            self._told = True


def _says(text: str, wanted: Mapping[int, datetime], authority: Authority, now: datetime) -> bool:
    """Whether the list, or that there is none, is what it should be."""
    if not text:
        return not wanted
    try:
        return lists.checked(text, [authority.certificate], now).serials == wanted.keys()
    except PodlaneError:
        return False


def _number(text: str) -> int:
    try:
        return lists.read(text).number if text else 0
    except PodlaneError:
        return 0
