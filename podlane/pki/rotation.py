"""Renewing what an authority has signed, and replacing the authority: what to do next.

Owns: `plan`. Pure: from what the files say to the next safe steps. Invariants: at no
moment, however often it is interrupted and whoever has got how far, do two holders
meet of whom one does not accept the other's certificate; the authority before is
trusted as long as a certificate by it is known that has not expired (but with
`force`). A rotation is two plans, as many days apart as the holders need to renew:

    begin   a new authority, cross-signed by the one before; both are trusted; this host's
            certificates are by the new one, everybody else's as they are renewed
    end     the one before is trusted no longer

Who trusts the old one accepts both, by the cross-certificate, and who trusts both as well;
who trusts the new one only does not accept the old, which nobody shows by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

WARN = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate. `file` is its name on this host, "" for one that is somewhere else; `signer` an authority's name,
    "" for none that is trusted here.
    """

    common_name: str
    signer: str
    ends: datetime
    file: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """`signer` signs; `before` is trusted beside it while a rotation is under way. `published`: ca.pem and ca.crt say
    so too.
    """

    signer: str
    before: str = ""
    published: bool = True
    leaves: tuple[Leaf, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """In this order: `publish` what follows from the authority's file, `begin`, renew the files in `renew`, `end`.

    `waits_for` are those for whom the rotation cannot end yet; `foreign` files are by none of ours, and left alone.
    """

    publish: bool = False
    begin: bool = False
    renew: tuple[str, ...] = ()
    end: bool = False
    waits_for: tuple[Leaf, ...] = ()
    foreign: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = ["write ca.pem and ca.crt anew"] if self.publish else []
        steps += ["make a new authority, cross-signed by the one before"] if self.begin else []
        steps += [f"renew {file}" for file in self.renew]
        steps += ["trust the authority before no longer"] if self.end else []
        return "\n".join(steps)


def plan(state: State, now: datetime, *, authority: bool = False, force: bool = False) -> Plan:
    """Without `authority`: renew every certificate here. With it: the next safe part of replacing the authority."""
    here = [leaf for leaf in state.leaves if leaf.file]
    foreign = tuple(leaf.file for leaf in here if not leaf.signer)
    ours = [leaf for leaf in here if leaf.signer]
    publish = not state.published
    if not authority:
        return Plan(publish, renew=_files(ours), foreign=foreign)
    if not state.before and publish:  # the end was interrupted: another beginning is not what was meant
        return Plan(publish, foreign=foreign)
    if not state.before:
        return Plan(begin=True, renew=_files(ours), foreign=foreign)
    late = [leaf for leaf in ours if leaf.signer != state.signer]
    if late:  # the beginning was interrupted
        return Plan(publish, renew=_files(late), foreign=foreign, waits_for=waiting(state, now))
    waits_for = waiting(state, now)
    return Plan(publish, end=force or not waits_for, foreign=foreign, waits_for=waits_for)


def waiting(state: State, now: datetime) -> tuple[Leaf, ...]:
    """Who has a certificate by the authority before that has not expired, by name."""
    by_before = (leaf for leaf in state.leaves if leaf.signer == state.before and leaf.ends > now)
    return tuple(sorted(by_before, key=lambda leaf: leaf.common_name))


def problem(ends: datetime, now: datetime) -> str:
    """What is to be said of a certificate that ends then; "" when all is well."""
    if ends <= now:
        return f"expired {(now - ends).days} days ago"
    if ends - now < WARN:
        return f"expires in {(ends - now).days} days"
    return ""


def _files(leaves: Iterable[Leaf]) -> tuple[str, ...]:
    return tuple(leaf.file for leaf in leaves)
