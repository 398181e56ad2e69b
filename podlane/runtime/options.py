"""The options every daemon has, and what they make.

Owns: logging and health options as one click decorator. Invariant: each option
can be given by an environment variable, `<DAEMON>_<OPTION>`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from ipaddress import ip_address
from typing import Any, Literal, get_args

import click

from podlane.runtime import log
from podlane.runtime.clock import Clock
from podlane.runtime.daemon import Daemon
from podlane.runtime.health import Checks, HealthServer

_M_ARENA_MAX = -8

Clients = Literal["all", "loopback"]


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What the operator asked for. `healthz_port` None serves nothing, 0 takes any free port.

    `metrics_clients`: whether metrics and documents are answered to "all", or to "loopback" clients only.
    """

    log_level: str = "info"
    log_format: log.Format = "logfmt"
    healthz_ip: str = "127.0.0.1"
    healthz_port: int | None = None
    metrics_clients: Clients = "all"

    def make_daemon(self, name: str, *, clock: Clock | None = None) -> Daemon:
        """Configure the logs, open the health port and return the frame to fill.

        Raises PodlaneError when the address cannot be had.
        """
        _share_one_heap()
        log.configure(self.log_level, self.log_format)
        ready = Checks()
        ready.add("started", lambda: "not yet")  # the daemon puts its own in place of it
        local_only = self.metrics_clients == "loopback"
        health = HealthServer(self.healthz_ip, self.healthz_port, ready=ready, local_only=local_only)
        return Daemon(name, clock=clock, health=health)


_NO_PORT = -1  # click keeps None for itself


def _share_one_heap() -> None:
    """Let all threads allocate from one heap. Source: mallopt(3).

    glibc gives each busy thread a heap of its own, of which much stays empty:
    5 MB in a daemon whose threads hold the interpreter's lock one at a time anyway.
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class _Port(click.ParamType[int]):
    """`zero` is the number that a 0 stands for."""

    name = "port"

    def __init__(self, zero: int = 0) -> None:
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().lower()
        if text == "none":
            return _NO_PORT
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            self.fail(f"expected a port from 0 to 65535 or 'none', got {value!r}", param, ctx)
        return int(text) or self._zero


class _Address(click.ParamType[str]):
    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ip_address(value))
        except ValueError:
            self.fail(f"expected an IP address, got {value!r}", param, ctx)


def daemon_options(
    daemon: str,
    *,
    healthz_port: int,
    healthz_ip: str = "127.0.0.1",
    also_from: tuple[str, ...] = (),
    zero_is_none: bool = False,
    metrics_clients: Clients | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command the common options; it receives them as `daemon_options: DaemonOptions`.

    `daemon` is the prefix of the environment variables (`netd`: NETD_LOG_LEVEL, ...).
    Those of the health options may have another, of `also_from`, as well.
    `zero_is_none`: as for flanneld, a port of 0 serves nothing.
    `metrics_clients`: the default of an option of that name; None leaves it out, and answers all.
    """
    prefix = daemon.upper().replace("-", "_")
    health_prefixes = (prefix, *also_from)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--log-level",
            type=click.Choice(log.LEVELS),
            default="info",
            show_default=True,
            envvar=f"{prefix}_LOG_LEVEL",
            show_envvar=True,
            help="Least severe records to write.",
        )
        @click.option(
            "--log-format",
            type=click.Choice(log.FORMATS),
            default="logfmt",
            show_default=True,
            envvar=f"{prefix}_LOG_FORMAT",
            show_envvar=True,
            help="key=value lines, or one JSON object a line.",
        )
        @click.option(
            "--healthz-ip",
            type=_Address(),
            metavar="IP",
            default=healthz_ip,
            show_default=True,
            envvar=[f"{each}_HEALTHZ_IP" for each in health_prefixes],
            show_envvar=True,
            help="Address for /metrics, /healthz, /livez and /readyz.",
        )
        @click.option(
            "--healthz-port",
            type=_Port(_NO_PORT if zero_is_none else 0),
            default=healthz_port,
            show_default=True,
            envvar=[f"{each}_HEALTHZ_PORT" for each in health_prefixes],
            show_envvar=True,
            help="Port for the same; "
            + ("0 or 'none' serves nothing." if zero_is_none else "0 takes any free one, 'none' serves nothing."),
        )
        @_metrics_clients_option(prefix, metrics_clients)
        @wraps(command)
        def with_options(
            *args: Any,
            log_level: str,
            log_format: log.Format,
            healthz_ip: str,
            healthz_port: int,
            metrics_clients: Clients = "all",
            **kwargs: Any,
        ) -> Any:
            port = None if healthz_port < 0 else healthz_port
            options = DaemonOptions(log_level, log_format, healthz_ip, port, metrics_clients)
            return command(*args, daemon_options=options, **kwargs)

        return with_options

    return decorate


def _metrics_clients_option(prefix: str, default: Clients | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if default is None:
        return lambda command: command
    return click.option(
        "--metrics-clients",
        type=click.Choice(get_args(Clients)),
        default=default,
        show_default=True,
        envvar=f"{prefix}_METRICS_CLIENTS",
        show_envvar=True,
        help="Whom /metrics and debug pages are answered to; health checks are answered to all.",
    )
