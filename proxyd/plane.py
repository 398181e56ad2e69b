"""One family's table: what is known of it, and how it is brought to what the index wants.

Owns: when the kernel is listed, when only what changed is written, what is left
for later, and what is left out. Invariants:

- `tables` is what the kernel has as far as our own commits say, or None when that
  is not known: then the next `bring` lists and compares. It writes differences only.
- `compare` lists beside the commits, which go on meanwhile, and judges only if
  there were none.
- What the kernel refuses is narrowed down to a frontend or an address, which is
  told of and left out until its service changes; everything else is served.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from proxyd.desired import Index, Touched
from proxyd.nft import Nft
from proxyd.plan import Plan, plan_all, plan_changes, plan_parts, unused_chains
from proxyd.ruleset import Skeleton
from proxyd.slots import Slot, in_use, plan_retire
from proxyd.tables import (
    ADDRESSES,
    CLUSTER_IPS,
    HAIRPIN,
    MAPS,
    PICKS,
    Family,
    Key,
    Refused,
    Tables,
    Transaction,
)

RETIRE_AFTER = 0.25
"""Seconds a slot outlives its use. A look-up on its way takes microseconds; a paused virtual CPU, longer."""

_MOST_BLAMED = 32
"""Elements the kernel is asked about one by one in a sync, before halves are tried."""
_OUTDATED = frozenset({errno.EEXIST, errno.ENOENT, errno.EBUSY})
"""What the kernel says when it does not have what we believe; after a fresh look it means the element itself."""
_PASSING = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN})

_COMMITS = metrics.counter("podlane_proxyd_commits_total", "nftables transactions by result.", ["result"])
_REPAIRS = metrics.counter("podlane_proxyd_repairs_total", "Times the kernel differed from what was written.")


@dataclass(frozen=True, slots=True)
class Brought:
    """What was done. `whole`: the table was listed, and something in it was not as it should be."""

    plans: list[Plan]
    whole: bool


class Plane:
    """Not thread-safe, except that `compare` may list while others commit.

    `leave_out(key, error)` is told of each frontend or address (packed) that the kernel refused.
    """

    def __init__(
        self, skeleton: Skeleton, nft: Nft, index: Index, clock: Clock, leave_out: Callable[[Key, Refused], None]
    ) -> None:
        self.skeleton = skeleton
        self.tables: Tables | None = None
        self.repairs = 0
        self._nft = nft
        self._index = index
        self._clock = clock
        self._leave_out = leave_out
        self._loaded = False
        self._retired: dict[Slot, float] = {}
        self._commits = 0
        self._log = get_logger("proxyd")

    @property
    def family(self) -> Family:
        return self.skeleton.family

    @property
    def retiring(self) -> int:
        """How many slots are left for later."""
        return len(self._retired)

    def bring(self, touched: Touched) -> Brought:
        """Commit what differs, where it was touched or, if need be, everywhere. Raises PodlaneError."""
        try:
            if self.tables is None:
                return self._bring_whole()
            return Brought([self._settle(lambda tables: plan_changes(tables, self._index, touched))], whole=False)
        except PodlaneError:
            self.tables = None  # what was touched is known to this call alone: the next one looks everywhere
            raise

    def retire(self) -> float | None:
        """Delete the slots whose time has come; seconds until there are more, None for never."""
        if not self._retired or self.tables is None:
            return None
        now = self._clock.monotonic()
        due = [slot for slot, at in self._retired.items() if at <= now]
        try:
            self._commit(plan_retire(self.tables, due))
        except PodlaneError:
            self.tables = None
            raise
        for slot in due:
            del self._retired[slot]
        return max(0.0, min(self._retired.values()) - now) if self._retired else None

    def listed(self) -> Callable[[], bool | None]:
        """List the kernel, which may take long; what is returned compares, which must not be beside a `bring`.

        That says whether the kernel has what was written; None if there was a commit meanwhile.
        """
        commits, static = self._commits, self._nft.intact(self.family)
        try:
            found = self._nft.dump(self.family)
        except PodlaneError as error:
            self._log.debug("list table", family=str(self.family), error=str(error))
            found = Tables(self.family)

        def compare() -> bool | None:
            if self.tables is None or self._commits != commits:
                return None  # what was listed is of no one moment of ours
            if static and found.maps == self.tables.maps and found.chains == self.tables.chains:
                return True
            self.tables = None
            self.repairs += 1
            _REPAIRS.inc()
            self._log.warning(
                "table was changed by someone else, repairing", family=str(self.family), static=not static
            )
            return False

        return compare

    def _bring_whole(self) -> Brought:
        """List the kernel, compare everything, write the differences."""
        if not self._loaded or not self._nft.intact(self.family):
            self._nft.load(self.skeleton)
            self._loaded = True
        self.tables = self._nft.dump(self.family)
        empty = not self.tables.chains and not any(self.tables.maps.values())
        if empty and (filled := self._fill()) is not None:
            return Brought(filled, whole=True)
        plan = self._settle(lambda tables: plan_all(tables, self._index), fresh=True)
        self._commit(Transaction(self.family, drop_chains=unused_chains(self.tables)))
        return Brought([plan], whole=bool(plan.now))

    def _fill(self) -> list[Plan] | None:
        """Write everything into an empty table in parts: the kernel takes one while the next is made.

        None, with what was written listed anew, if something was refused.
        """
        assert self.tables is not None
        parts: list[Plan] = []
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="fill") as kernel:
                taken: Future[None] | None = None
                for part in plan_parts(self.tables, self._index):
                    self._commits += 1
                    self.tables.apply(part.now)
                    parts.append(part)
                    if taken is not None:
                        taken.result()
                    taken = kernel.submit(self._nft.commit, part.now)
                if taken is not None:
                    taken.result()
        except Refused as error:
            self._log.debug("write an empty table in parts", family=str(self.family), error=str(error))
            self.tables = self._nft.dump(self.family)
            return None
        return parts

    def _settle(self, make: Callable[[Tables], Plan], *, fresh: bool = False) -> Plan:
        """Plan and commit, leaving out what the kernel refuses. `fresh`: the tables were listed just now."""
        clean: set[Key] = set()
        for attempt in range(_MOST_BLAMED + 2):
            assert self.tables is not None
            plan = make(self.tables)
            try:
                self._commit(plan.now)
            except Refused as error:
                if error.errno in _PASSING or (error.errno in _OUTDATED and not fresh):
                    raise
                if attempt < _MOST_BLAMED and (blamed := _blamed(plan.now, error)):
                    for key in blamed:
                        self._leave_out(key, error)
                else:
                    clean |= self._halve(_parts(plan.now), error)
            else:
                self._put_off(plan.retire)
                plan.clean |= clean
                return plan
        raise PodlaneError(f"commit {self.family} table: the kernel refuses it, whatever is left out")

    def _put_off(self, slots: Sequence[Slot]) -> None:
        """Have these slots retired. Those that are in use again begin anew when they are not any more."""
        assert self.tables is not None
        due = self._clock.monotonic() + RETIRE_AFTER
        self._retired = {slot: at for slot, at in self._retired.items() if not in_use(self.tables, slot)}
        self._retired.update((slot, due) for slot in slots if slot not in self._retired)

    def _halve(self, parts: list[_Part], error: Refused) -> set[Key]:
        """Commit as much as the kernel takes, half by half; leave out the parts it does not.

        Returns the frontends whose conntrack entries must be looked at.
        """
        if not parts:
            raise error
        assert self.tables is not None
        touched = Touched()
        for kind, key in parts:
            getattr(touched, kind).add(key)
        plan = plan_changes(self.tables, self._index, touched)
        try:
            self._commit(plan.now)
        except Refused as refused:
            if refused.errno in _PASSING:
                raise
            if len(parts) == 1:
                self._leave_out(parts[0][1], refused)
                return set()
            middle = len(parts) // 2
            return self._halve(parts[:middle], refused) | self._halve(parts[middle:], refused)
        return plan.clean

    def _commit(self, transaction: Transaction) -> None:
        """Raises Refused, with nothing done, or PodlaneError, and then it is not known what the kernel has."""
        if not transaction:
            return
        assert self.tables is not None
        self._commits += 1
        try:
            self._nft.commit(transaction)
            self.tables.apply(transaction)
        except PodlaneError:
            _COMMITS.labels("error").inc()
            raise
        _COMMITS.labels("ok").inc()


_Part = tuple[str, Key]
"""What can be left out: an attribute of Touched and a key in it."""


def _parts(transaction: Transaction) -> list[_Part]:
    """What a transaction adds something of. Addresses come first: a frontend's address is to be in its set."""
    width = transaction.family.width
    parts: dict[_Part, None] = {("addresses", key): None for key in sorted(transaction.add[CLUSTER_IPS])}
    parts |= {("hairpin", key[:width]): None for key in sorted(transaction.add[HAIRPIN])}
    names = [name for name, spec in MAPS.items() if "proto" in spec.key]
    frontends = {key[: width + 8] for name in names for key in transaction.add[name]}
    return [*parts, *(("frontends", key) for key in sorted(frontends))]


def _blamed(transaction: Transaction, error: Refused) -> set[Key]:
    """What to leave out so that the element at fault is not written: frontends, or a member of a set."""
    if error.element is None:
        return set()
    name, key = error.element
    width = transaction.family.width
    if name == ADDRESSES:
        return {slot[:-4] for slot, number in transaction.add[PICKS].items() if number == key}
    return {key[: width + 8] if "proto" in MAPS[name].key else key[:width]}
