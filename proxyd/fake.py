"""The kernel's side without a kernel, as strict as the kernel.

Owns: `FakeNft`, held to the contract tests that the real one passes: atomic
commits, EEXIST, ENOENT, EBUSY, ENFILE. `fail_next` makes a commit fail as a
busy kernel would, `after_commit` lets a test stop the world between two
transactions, `meddle` stands for another person's hand.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable

from podlane.errors import PodlaneError
from proxyd.ruleset import Skeleton
from proxyd.tables import Refused, Tables, Transaction


class FakeNft:
    """One network namespace's nftables as far as proxyd uses it."""

    def __init__(self) -> None:
        self.tables: Tables | None = None
        self.skeleton: Skeleton | None = None
        self.commits: list[Transaction] = []
        self.loads = 0
        self.after_commit: Callable[[Transaction], None] = lambda _: None
        self._loaded: Skeleton | None = None
        self._generation = 1
        self._failures: list[PodlaneError] = []

    def fail_next(self, *errors: PodlaneError) -> None:
        """Make the next commits raise these, one each, with nothing done."""
        self._failures += errors

    def meddle(self, change: Callable[[Tables], None]) -> None:
        """Change the table behind proxyd's back."""
        assert self.tables is not None
        change(self.tables)
        self._generation += 1

    def flush_ruleset(self) -> None:
        """`nft flush ruleset`: every table is gone."""
        self.tables = self.skeleton = None
        self._generation += 1

    def restart_proxyd(self) -> None:
        """Forget what belongs to the process; the table stays."""
        self._loaded = None

    def load(self, skeleton: Skeleton) -> None:
        if self.tables is None:
            self.tables = Tables()
        self.skeleton = self._loaded = skeleton
        self.loads += 1
        self._generation += 1

    def intact(self) -> bool:
        return self._loaded is not None and self._loaded == self.skeleton

    def dump(self) -> Tables:
        if self.tables is None:
            raise Refused("list table", errno.ENOENT)
        return copy.deepcopy(self.tables)

    def commit(self, transaction: Transaction) -> None:
        if not transaction:
            return
        if self._failures:
            raise self._failures.pop(0)
        if self.tables is None:
            raise Refused("commit transaction", errno.ENOENT)
        self.tables.apply(transaction, size=self.skeleton.size if self.skeleton else None)
        self._generation += 1
        self.commits.append(transaction)
        self.after_commit(transaction)

    def generation(self) -> int:
        return self._generation

    def delete(self) -> None:
        self.flush_ruleset()
        self._loaded = None

    def close(self) -> None:
        """Nothing to give back."""
