"""An etcd lease of ours: taken over from before a restart or made, renewed, replaced when lost.

Owns: nothing in the store but the lease itself. Invariant: a lease that is lost
is never offered again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from podlane.store.interface import LeaseNotFound


class Renewal(Protocol):
    """An etcd lease that somebody renews; podlane.store.lease.KeepAlive is one."""

    @property
    def lease_id(self) -> int: ...

    @property
    def lost(self) -> bool: ...

    def ttl_left(self) -> float:
        """Seconds until it would end if it were renewed no more."""
        ...

    def start(self) -> object:
        """Raises StoreUnavailable, LeaseNotFound (the one to adopt is gone)."""
        ...

    def stop(self, *, revoke: bool = False) -> object: ...


MakeRenewal = Callable[[int, int], Renewal]
"""Given seconds to live, and the id of the lease to adopt or 0 for a new one."""


@dataclass
class RenewedLease:
    """One lease of `ttl` seconds at a time; not thread-safe but for reading."""

    make: MakeRenewal
    ttl: int
    _renewal: Renewal | None = field(default=None, repr=False)

    @property
    def id(self) -> int:
        """0 when there is none or it is lost."""
        renewal = self._renewal
        return renewal.lease_id if renewal is not None and not renewal.lost else 0

    @property
    def ttl_left(self) -> float:
        renewal = self._renewal
        return renewal.ttl_left() if renewal is not None else 0.0

    def ensure(self, adopt: int = 0) -> int:
        """The id of a lease that is being renewed: the present one, else `adopt` if it lives, else a new one."""
        if self._renewal is not None and self._renewal.lost:
            self.stop()
        if self._renewal is None and adopt:
            with contextlib.suppress(LeaseNotFound):  # it has just ended; then a new one
                self._start(adopt)
        if self._renewal is None:
            self._start(0)
        return self.id

    def stop(self, *, revoke: bool = False) -> None:
        """Renew it no more; it ends by itself, or with `revoke` now."""
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.stop(revoke=revoke)

    def _start(self, lease_id: int) -> None:
        renewal = self.make(self.ttl, lease_id)
        renewal.start()
        self._renewal = renewal
