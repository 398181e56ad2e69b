"""The kernel's side without a kernel, as strict as the kernel.

Owns: `FakeNft`, held to the contract tests that the real one passes: atomic
commits, EEXIST, ENOENT, EBUSY, ENFILE. `fail_next` makes a commit fail as a
busy kernel would, `refuse` makes one element impossible, `after_commit` lets a
test stop the world between two transactions, `meddle` stands for another person's hand.
"""

from __future__ import annotations

import copy
import errno
import threading
from collections.abc import Callable

from podlane.errors import PodlaneError
from proxyd.ruleset import Skeleton
from proxyd.tables import IPV4, MAPS, Family, Key, Refused, Tables, Transaction


class FakeNft:
    """One network namespace's nftables as far as proxyd uses it."""

    def __init__(self) -> None:
        self.kernel: dict[Family, Tables] = {}
        self.skeletons: dict[Family, Skeleton] = {}
        self.commits: list[Transaction] = []
        self.loads = 0
        self.after_commit: Callable[[Transaction], None] = lambda _: None
        self.named = True
        """Whether a refusal names the element, as recent kernels do."""
        self.changed: Callable[[], None] = lambda: None
        self._loaded: dict[Family, Skeleton] = {}
        self._failures: list[PodlaneError] = []
        self._impossible: set[tuple[str, Key]] = set()

    @property
    def tables(self) -> Tables:
        """The IPv4 table."""
        return self.kernel[IPV4]

    def fail_next(self, *errors: PodlaneError) -> None:
        """Make the next commits raise these, one each, with nothing done."""
        self._failures += errors

    def refuse(self, name: str, key: Key) -> None:
        """Refuse every transaction that adds this element."""
        self._impossible.add((name, key))

    def meddle(self, change: Callable[[Tables], None], family: Family = IPV4) -> None:
        """Change the table behind proxyd's back."""
        change(self.kernel[family])
        self.changed()

    def flush_ruleset(self) -> None:
        """`nft flush ruleset`: every table is gone."""
        self.kernel, self.skeletons = {}, {}
        self.changed()

    def restart_proxyd(self) -> None:
        """Forget what belongs to the process; the tables stay."""
        self._loaded = {}

    def load(self, skeleton: Skeleton) -> None:
        self.kernel.setdefault(skeleton.family, Tables(skeleton.family))
        self.skeletons[skeleton.family] = self._loaded[skeleton.family] = skeleton
        self.loads += 1

    def intact(self, family: Family) -> bool:
        return family in self._loaded and self._loaded[family] == self.skeletons.get(family)

    def dump(self, family: Family) -> Tables:
        if family not in self.kernel:
            raise Refused("list table", errno.ENOENT)
        return copy.deepcopy(self.kernel[family])

    def commit(self, transaction: Transaction) -> None:
        if not transaction:
            return
        if self._failures:
            raise self._failures.pop(0)
        tables = self.kernel.get(transaction.family)
        if tables is None:
            raise Refused("commit transaction", errno.ENOENT)
        for name, key in self._impossible:
            if key in transaction.add[name]:
                shown = f"commit {name} {MAPS[name].show_key(transaction.family, key)}" if self.named else "commit"
                raise Refused(shown, errno.EINVAL, (name, key) if self.named else None)
        skeleton = self.skeletons.get(transaction.family)
        tables.apply(transaction, size=skeleton.size if skeleton else None)
        self.commits.append(copy.deepcopy(transaction))
        self.after_commit(transaction)

    def watch(self, stop: threading.Event, changed: Callable[[], None]) -> None:
        self.changed = changed
        stop.wait()

    def delete(self, family: Family) -> None:
        self.kernel.pop(family, None)
        self.skeletons.pop(family, None)
        self._loaded.pop(family, None)

    def close(self) -> None:
        """Nothing to give back."""
