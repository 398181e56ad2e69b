"""The agent's options about its API's certificates, and the guard they mean.

Owns: the choice between the cluster's authority and, where there is none, the
agent's own certificate with the cluster's token. Invariant: never both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from podlane.runtime.clock import Clock
    from podlane.runtime.daemon import Daemon
    from podlane.store.interface import Store
    from scheduler.agent.guard import Guard
    from scheduler.agent.revocations import Revocations

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ApiFiles:
    """The options by their field's name."""

    tls_cert_file: Path
    tls_private_key_file: Path
    client_ca_file: Path


_OPTIONS = {
    "tls_cert_file": "Certificate the API shows, of the cluster's authority.",
    "tls_private_key_file": "Key of that certificate.",
    "client_ca_file": "Authority of those who may ask: operators. Without these three options the API has a "
    "certificate of its own and takes the cluster's token.",
}


def api_options(command: F) -> F:
    """Passes `api_files: ApiFiles | None`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in _OPTIONS}
        missing = [f"--{name.replace('_', '-')}" for name, file in given.items() if file is None]
        if missing and len(missing) < len(given):
            raise click.UsageError(f"{', '.join(missing)}: the agent's API needs all three of its files, or none")
        return command(*args, api_files=None if missing else ApiFiles(**given), **kwargs)

    for name, text in reversed(_OPTIONS.items()):
        wrapper = click.option(
            f"--{name.replace('_', '-')}",
            envvar=f"AGENT_{name.upper()}",
            show_envvar=True,
            type=click.Path(dir_okay=False, path_type=Path),
            help=text,
        )(wrapper)
    return wrapper  # type: ignore[return-value]


def revocations_of(files: ApiFiles | None, state_dir: Path, store: Store, daemon: Daemon, clock: Clock) -> Revocations:
    """Who is let in no more. Without an authority there is no list to follow."""
    from scheduler.agent.revocations import Revocations

    revoked = Revocations(store, state_dir, files.client_ca_file if files else Path(), clock)
    if files is not None:
        daemon.add_thread("revocations", revoked.run)
    return revoked


def guard_of(
    files: ApiFiles | None, state_dir: Path, node: str, token: Callable[[], str], revoked: Container[int]
) -> tuple[Guard, str]:
    """The guard, and the fingerprint that the Node has to tell of, if any. Raises PodlaneError."""
    from scheduler.agent.guard import OperatorGuard, TokenGuard

    if files is not None:
        own = (files.tls_cert_file, files.tls_private_key_file, files.client_ca_file)
        return OperatorGuard(*own, revoked), ""
    from scheduler.agent.certificate import ensure_certificate

    certificate = ensure_certificate(state_dir, node)
    return TokenGuard(certificate, token), certificate.fingerprint
