"""Which certificates an agent takes no more, though they have not expired.

Owns: the agent's view of the cluster's list. Invariants: a list counts if the authorities of the
agent's own file stand behind it, and only if its number is greater than that of the list before;
the last one that counted stands, also without etcd and after a restart (a file in the state
folder). Without any list nothing is revoked; a state file that cannot be read ends no pods.
The check is a process of its own (podlane.pki.revocationcheck says why). See docs/adr/0025.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from podlane.errors import PermissionDenied, PodlaneError
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock
from podlane.runtime.command import CommandError, run
from podlane.runtime.log import Repetition, get_logger
from podlane.store import keys
from podlane.store.interface import Store

FILE = "revoked.json"
RESYNC = 600.0
"""Seconds after which the list is read again although nothing was heard of another."""
_PAUSES = (0.2, 30.0)
_POLL = 1.0
_CHECK_SECONDS = 60.0


class Revoked(msgspec.Struct, frozen=True):
    """What a list says, and the content of FILE; serial numbers in hexadecimal."""

    number: int = 0
    serials: frozenset[str] = frozenset()


class Revocations:
    """`cafile` says who may sign the list; `on_change` is called when there is another.

    `run` is the body of one thread; anybody may ask.
    """

    def __init__(self, store: Store, state_dir: Path, cafile: Path, clock: Clock) -> None:
        self._store = store
        self._file = state_dir / FILE
        self._cafile = cafile
        self._clock = clock
        self.on_change: Callable[[], None] = lambda: None
        self._log = get_logger("revocations")
        self._list = self._read()
        self._text = b""
        self._repetition = Repetition()

    def __contains__(self, serial: object) -> bool:
        return isinstance(serial, int) and f"{serial:x}" in self._list.serials

    def run(self, stop: threading.Event) -> None:
        pause = _PAUSES[0]
        while not stop.is_set():
            try:
                self._follow(stop)
                self._repetition.over()
                pause = _PAUSES[0]
            except PodlaneError as error:
                if stop.is_set():
                    return  # the store may be closed by now
                # this cluster's roles are older than lists are, so it has none
                denied = isinstance(error, PermissionDenied)
                news = not denied and self._repetition.is_news(str(error), self._clock.monotonic())
                (self._log.warning if news else self._log.debug)("list not read", error=str(error), retry_in=pause)
                self._clock.wait(stop, _PAUSES[1] if denied else pause)
                pause = min(_PAUSES[1], 2 * pause)

    def _follow(self, stop: threading.Event) -> None:
        """Heed the list as it is, and as it becomes, for RESYNC seconds."""
        revision = self._store.txn([], []).revision
        with self._store.watch_many({keys.REVOCATION_LIST: revision}, exact=True) as watch:
            if (kv := self._store.get(keys.REVOCATION_LIST)) is not None:
                self.heed(kv.value)
            until = self._clock.monotonic() + RESYNC
            while not stop.is_set() and self._clock.monotonic() < until:
                batch = watch.next(_POLL)
                for event in batch.events if batch is not None else ():
                    if event.type == "put":
                        self.heed(event.kv.value)

    def heed(self, text: bytes) -> None:
        """Take a list for the cluster's, if it is newer than the one before. Raises PodlaneError for a stranger's."""
        if text == self._text:
            return
        check = (sys.executable, "-P", "-m", "podlane.pki.revocationcheck", str(self._cafile))
        try:
            found = msgspec.json.decode(run(check, input=text, timeout=_CHECK_SECONDS).stdout, type=Revoked)
        except CommandError as error:
            cause = error.stderr.strip() or error
            raise PodlaneError(f"heed list of revoked certificates: {cause}; the one before stands") from error
        if found.number > self._list.number:
            write_atomic(self._file, msgspec.json.encode(found), mode=0o600)
            self._list = found
            self._log.info("list of revoked certificates", number=found.number, certificates=len(found.serials))
            self.on_change()
        self._text = text

    def _read(self) -> Revoked:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Revoked)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            self._log.error("last list of revoked certificates not read", file=str(self._file), error=str(error))
        return Revoked()
