"""The options every daemon has, and what they make.

Owns: logging and health options as one click decorator. Invariant: each option
can be given by an environment variable, `<DAEMON>_<OPTION>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from podlane.runtime import log
from podlane.runtime.clock import Clock
from podlane.runtime.daemon import Daemon
from podlane.runtime.health import Checks, HealthServer


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What the operator asked for. `healthz_port` None serves nothing, 0 takes any free port."""

    log_level: str = "info"
    log_format: log.Format = "logfmt"
    healthz_ip: str = "127.0.0.1"
    healthz_port: int | None = None

    def make_daemon(self, name: str, *, clock: Clock | None = None) -> Daemon:
        """Configure the logs, open the health port and return the frame to fill.

        Raises PodlaneError when the address cannot be had.
        """
        log.configure(self.log_level, self.log_format)
        ready = Checks()
        ready.add("started", lambda: "not yet")  # the daemon puts its own in place of it
        return Daemon(name, clock=clock, health=HealthServer(self.healthz_ip, self.healthz_port, ready=ready))


class _Port(click.ParamType[int]):
    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the port; -1 stands for none, since click keeps None for itself."""
        if isinstance(value, int):
            return value
        text = str(value).strip().lower()
        if text == "none":
            return -1
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            self.fail(f"expected a port from 0 to 65535 or 'none', got {value!r}", param, ctx)
        return int(text)


PORT = _Port()


def daemon_options(daemon: str, *, healthz_port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command the common options; it receives them as `daemon_options: DaemonOptions`.

    `daemon` is the prefix of the environment variables (`netd`: NETD_LOG_LEVEL, ...).
    """
    prefix = daemon.upper().replace("-", "_")

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
            metavar="IP",
            default="127.0.0.1",
            show_default=True,
            envvar=f"{prefix}_HEALTHZ_IP",
            show_envvar=True,
            help="Address for /metrics, /healthz, /livez and /readyz.",
        )
        @click.option(
            "--healthz-port",
            type=PORT,
            default=healthz_port,
            show_default=True,
            envvar=f"{prefix}_HEALTHZ_PORT",
            show_envvar=True,
            help="Port for the same; 0 takes any free one, 'none' serves nothing.",
        )
        @wraps(command)
        def with_options(
            *args: Any,
            log_level: str,
            log_format: log.Format,
            healthz_ip: str,
            healthz_port: int,
            **kwargs: Any,
        ) -> Any:
            options = DaemonOptions(log_level, log_format, healthz_ip, None if healthz_port < 0 else healthz_port)
            return command(*args, daemon_options=options, **kwargs)

        return with_options

    return decorate
