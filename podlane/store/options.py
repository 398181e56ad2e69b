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
    click.option(
        "--etcd-endpoints",
        metavar="URL,URL…",
        envvar="PODLANE_ETCD_ENDPOINTS",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        show_envvar=True,
        help="etcd's client addresses; several are tried in turn.",
    ),
    click.option(
        "--etcd-cafile",
        metavar="FILE",
        envvar="PODLANE_ETCD_CAFILE",
        default="",
        show_envvar=True,
        help="Certificate authority that signed etcd's certificate.",
    ),
    click.option(
        "--etcd-certfile",
        metavar="FILE",
        envvar="PODLANE_ETCD_CERTFILE",
        default="",
        show_envvar=True,
        help="Client certificate to show to etcd.",
    ),
    click.option(
        "--etcd-keyfile",
        metavar="FILE",
        envvar="PODLANE_ETCD_KEYFILE",
        default="",
        show_envvar=True,
        help="Key of the client certificate.",
    ),
    click.option(
        "--etcd-username",
        metavar="NAME",
        envvar="PODLANE_ETCD_USERNAME",
        default="",
        show_envvar=True,
        help="etcd user.",
    ),
    click.option(
        "--etcd-password",
        metavar="PASSWORD",
        envvar="PODLANE_ETCD_PASSWORD",
        default="",
        show_envvar=True,
        help="Password of the etcd user; the environment variable keeps it out of the process list.",
    ),
)


def store_options(command: F) -> F:
    """Add the options to a click command and pass them as `store_config: StoreConfig`."""

    @functools.wraps(command)
    def wrapper(
        *args: Any,
        etcd_endpoints: str,
        etcd_cafile: str,
        etcd_certfile: str,
        etcd_keyfile: str,
        etcd_username: str,
        etcd_password: str,
        **kwargs: Any,
    ) -> Any:
        try:
            config = StoreConfig(
                endpoints=parse_endpoints(etcd_endpoints),
                cafile=etcd_cafile,
                certfile=etcd_certfile,
                keyfile=etcd_keyfile,
                username=etcd_username,
                password=etcd_password,
            )
        except Invalid as error:
            raise click.UsageError(str(error)) from error
        return command(*args, store_config=config, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
