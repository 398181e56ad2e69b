"""The command-line options that say where etcd is, the same for every daemon.

Owns: their names and environment variables. Invariant: a daemon gets one
finished `store_config`, and a mistake in any of them is a usage error before
anything starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from podlane.errors import Invalid
from podlane.store.config import DEFAULT_ENDPOINT, StoreConfig, parse_endpoints

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    ("endpoints", "URL,URL…", "etcd's client addresses; several are tried in turn."),
    ("cafile", "FILE", "Certificate authority that signed etcd's certificate."),
    ("certfile", "FILE", "Client certificate to show to etcd."),
    ("keyfile", "FILE", "Key of the client certificate."),
    ("username", "NAME", "etcd user."),
    ("password", "PASSWORD", "Password of the etcd user; the environment variable keeps it out of the process list."),
)


def store_options_from(*prefixes: str) -> Callable[[F], F]:
    """Add the options to a click command and pass them as `store_config: StoreConfig`.

    Of the environment variables `<prefix>_ETCD_…` the first that is set counts.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(f"etcd_{name}") for name, _, _ in _OPTIONS}
            try:
                config = StoreConfig(**{**given, "endpoints": parse_endpoints(given["endpoints"])})
            except Invalid as error:
                mistakes = (f"--etcd-{each.field.partition('[')[0]}: {each.message}" for each in error.errors)
                raise click.UsageError("\n".join(mistakes)) from error
            return command(*args, store_config=config, **kwargs)

        for name, metavar, text in reversed(_OPTIONS):
            wrapper = click.option(
                f"--etcd-{name}",
                metavar=metavar,
                envvar=[f"{prefix}_ETCD_{name.upper()}" for prefix in prefixes],
                default=DEFAULT_ENDPOINT if name == "endpoints" else "",
                show_default=name == "endpoints",
                show_envvar=True,
                help=text,
            )(wrapper)
        return wrapper  # type: ignore[return-value]

    return decorate


store_options = store_options_from("PODLANE")
"""As every daemon but netd has them."""
