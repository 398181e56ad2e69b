"""The exceptions every layer may raise.

Owns: the root of the exception tree and the exit codes. A message reads
"action object: cause", lower case, without a full stop.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 10
"""Failures an ApplyError's message names: what goes wrong with one peer may go wrong with thousands."""


class PodlaneError(Exception):
    """Something went wrong that an operator can understand. Exit code 1."""

    exit_code = 1


class UsageError(PodlaneError):
    """The caller asked for something that makes no sense. Exit code 2."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field: `spec.replicas: expected an integer ≥ 0, got "four"`."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Invalid(UsageError):
    """An object or a file breaks a rule; carries every error found, not only the first."""

    def __init__(self, where: str, errors: list[FieldError]) -> None:
        self.where = where
        self.errors = errors
        super().__init__("\n".join(f"{where}: {e}" if where else str(e) for e in errors))


class NotFound(PodlaneError):
    """The named object is not in the store."""


class AlreadyExists(PodlaneError):
    """An object of that name is in the store already."""


class Conflict(PodlaneError):
    """The object changed since it was read; read it again and retry."""


class StoreUnavailable(PodlaneError):
    """The store did not answer before the deadline, or no endpoint is reachable. Worth retrying."""


class Forbidden(PodlaneError):
    """The cluster does not allow it as things are: a quota is used up, a namespace is not there."""


class NamespaceTerminating(Forbidden):
    """Nothing may be made in a namespace that ends."""


class PermissionDenied(PodlaneError):
    """The store knows us but does not allow this, or does not know us."""


class Fenced(PodlaneError):
    """A leader's write was refused because it is the leader no longer."""


class ApplyError(PodlaneError):
    """Some steps of a plan failed; the independent others were carried out."""

    def __init__(self, failures: list[tuple[str, Exception]]) -> None:
        self.failures = failures
        more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        super().__init__("; ".join(f"{step}: {cause}" for step, cause in failures[:_SHOWN]) + more)
