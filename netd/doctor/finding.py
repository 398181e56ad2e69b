"""What the doctor says: one finding a check, in an operator's words.

Owns: the form of a finding. Invariant: a finding that is not ok says what is
wrong, what shows it, and what to type; one that is ok says what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is a short name that scripts can rely on; `peer` a peer's public address, empty for this host."""

    check: str
    severity: Severity
    peer: str
    what: str
    evidence: str = ""
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.severity == "ok" or (self.what and self.evidence and self.fix), self


def ok(check: str, what: str, *, peer: str = "", evidence: str = "") -> Finding:
    return Finding(check, "ok", peer, what, evidence)


def error(check: str, what: str, *, evidence: str, fix: str, peer: str = "") -> Finding:
    return Finding(check, "error", peer, what, evidence, fix)


def warning(check: str, what: str, *, evidence: str, fix: str, peer: str = "") -> Finding:
    return Finding(check, "warning", peer, what, evidence, fix)


def exit_code(findings: Iterable[Finding]) -> int:
    return 1 if any(each.severity == "error" for each in findings) else 0


def some(names: Iterable[object], shown: int = 3) -> str:
    """A list for people: the first few, and how many more."""
    texts = [str(name) for name in names]
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
