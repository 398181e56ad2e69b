"""systemd, as far as installing needs it: start, stop, and wait until a unit is ready.

Owns: the words of systemctl. Invariant: a unit counts as ready only in a life that
began after it was asked to start (its InvocationID is another one), so a restart is
never mistaken for done. Source: systemctl(1), org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from podlane.errors import PodlaneError
from podlane.host.system import System
from podlane.runtime.clock import Clock

_ASK = 0.5  # seconds between two looks at a unit
_LIVES = 5
"""Restarts after which a unit is given up: something is wrong that waiting does not mend."""

_TIMEOUT = 120.0
_PROPERTIES = ("ActiveState", "SubState", "StatusText", "Result", "NRestarts", "InvocationID")


@dataclass(frozen=True, slots=True)
class UnitState:
    active: bool = False
    failed: bool = False
    text: str = ""
    result: str = ""
    restarts: int = 0
    invocation: str = ""


class Services:
    def __init__(self, system: System, clock: Clock) -> None:
        self._system = system
        self._clock = clock

    def state(self, unit: str) -> UnitState:
        shown = self._systemctl("show", "--property", ",".join(_PROPERTIES), unit)
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        return UnitState(
            active=values.get("ActiveState") == "active",
            failed=values.get("ActiveState") == "failed",
            text=values.get("StatusText", ""),
            result=values.get("Result", ""),
            restarts=int(values.get("NRestarts") or 0),
            invocation=values.get("InvocationID", ""),
        )

    def start(self, unit: str, *, restart: bool = False) -> None:
        self._systemctl("reset-failed", unit, check=False)
        self._systemctl("--no-block", "restart" if restart else "start", unit)

    def stop(self, unit: str) -> None:
        self._systemctl("stop", unit)

    def reload(self) -> None:
        self._systemctl("daemon-reload")

    def await_ready(
        self, unit: str, before: UnitState, timeout: float, stop: threading.Event, say: Callable[[str], None]
    ) -> None:
        """Raises PodlaneError with the unit's last lines. `say` is told what it waits for, when that changes."""
        deadline = self._clock.monotonic() + timeout
        told = ""
        while True:
            state = self.state(unit)
            new = state.invocation != before.invocation or not before.active
            if state.active and new:
                return
            if state.failed or state.restarts >= _LIVES:
                raise PodlaneError(f"start {unit}: it ends ({state.result or 'failed'})\n{self.last_lines(unit)}")
            if self._clock.monotonic() >= deadline:
                raise PodlaneError(
                    f"start {unit}: not ready after {timeout:.0f} s ({state.text or 'it says nothing'})\n"
                    f"{self.last_lines(unit)}"
                )
            if state.text and state.text != told and new:
                told = state.text
                say(f"{unit}: {told}")
            self._clock.wait(stop, _ASK)

    def last_lines(self, unit: str) -> str:
        done = self._system.run(
            ["journalctl", "--unit", unit, "--lines", "15", "--no-pager", "--output", "cat"], timeout=30, check=False
        )
        return "\n".join(f"    {line}" for line in done.stdout.splitlines())

    def _systemctl(self, *words: str, check: bool = True) -> str:
        return self._system.run(["systemctl", *words], timeout=_TIMEOUT, check=check).stdout
