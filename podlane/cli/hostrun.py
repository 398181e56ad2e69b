"""What install, upgrade and uninstall have in common on a real host.

Owns: that only one of them works at a time, and that a signal ends it by undoing:
the first SIGINT, SIGTERM or SIGHUP counts, and none disturbs the undoing.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from podlane.cli.command import fail

LOCK = "/run/podlane-install.lock"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ready_timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a daemon may take to be ready.",
)


@contextmanager
def alone(command: str) -> Iterator[None]:
    """Needs root. Ends the command when another is at work."""
    if os.geteuid() != 0:
        fail(f"{command}: needs root; try sudo")
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    with open(LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{command}: another installation is at work on this machine")
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
