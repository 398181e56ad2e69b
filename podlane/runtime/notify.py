"""Telling systemd how we are: readiness, status, watchdog.

Owns: the sd_notify datagrams. Invariant: notifying never fails the daemon and
never blocks it; without NOTIFY_SOCKET it does nothing.
Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from podlane.runtime.log import get_logger

_log = get_logger("notify")


class Notifier:
    """Sends to the socket that the environment names, if it names one."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):  # an abstract socket, whose real name starts with a zero byte
            address = "\0" + address[1:]
        self._address = address
        self._failed = False
        self.watchdog = _watchdog_seconds(environ)
        """Seconds within which systemd wants a sign of life; None when it does not ask for one."""

    def send(self, *lines: str) -> None:
        """Send assignments such as `READY=1`. A failure is logged once."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                _log.warning("service manager not notified", error=error.strerror or str(error))
            self._failed = True
        else:
            self._failed = False


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        pid = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError:
        return None
    if microseconds <= 0 or pid not in {0, os.getpid()}:
        return None
    return microseconds / 1e6
