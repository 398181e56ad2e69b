"""The agent's options about Docker: where it is, how long it may take, how full its disk may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from scheduler.agent.runtime import QUICK_TIMEOUT

if TYPE_CHECKING:
    from scheduler.agent.prune import Limits

F = TypeVar("F", bound=Callable[..., Any])


def _parse_image_gc(ctx: click.Context, param: click.Parameter, value: str) -> Limits:
    del ctx, param
    from scheduler.agent.prune import Limits

    high, _, low = (part.strip() for part in value.partition(","))
    if not (high.isdecimal() and low.isdecimal() and 0 < int(low) < int(high) <= 100):
        raise click.BadParameter(f'expected HIGH,LOW with 0 < LOW < HIGH ≤ 100, got "{value}"')
    return Limits(high=int(high), low=int(low))


def engine_options(command: F) -> F:
    """Passes `docker_host: str`, `docker_timeout: float` and `image_limits: Limits`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--docker-host",
        envvar="DOCKER_HOST",
        show_envvar=True,
        default="unix:///run/docker.sock",
        show_default=True,
        metavar="URL",
        help="Docker's API.",
    ),
    click.option(
        "--docker-timeout",
        envvar="AGENT_DOCKER_TIMEOUT",
        show_envvar=True,
        default=QUICK_TIMEOUT,
        show_default=True,
        type=click.FloatRange(0.1, 300),
        metavar="SECONDS",
        help="How long Docker may take to answer a question before it counts as away.",
    ),
    click.option(
        "--image-gc",
        "image_limits",
        envvar="AGENT_IMAGE_GC",
        show_envvar=True,
        default="85,80",
        show_default=True,
        callback=_parse_image_gc,
        metavar="HIGH,LOW",
        help="Percent of the disk in use from which on unused images are removed, and down to which.",
    ),
)
