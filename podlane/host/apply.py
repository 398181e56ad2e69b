"""Carry a plan out on a host, or leave the host as it was.

Owns: doing, undoing, and waiting for units. Invariant: when `apply` raises, what it
made is gone, what it changed is as before, and units that ran before run again with
it, as far as the host allows; what could not be undone is named. Steps are undone
in reverse; units are restarted last, when all their files are the old ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath

from podlane.errors import ApplyError, PodlaneError
from podlane.host.layout import UNITS
from podlane.host.services import Services
from podlane.host.steps import Command, File, Folder, Link, Plan, Remove, Stage, Start, Step
from podlane.host.system import System
from podlane.runtime.clock import Clock

Say = Callable[[str], None]


class Undone(PodlaneError):
    """A plan failed; the host is as it was, but for what the message names."""


@dataclass
class Applier:
    """One run. `say` is told what happens, for people; `ready_timeout` is how many seconds a unit gets."""

    system: System
    clock: Clock
    say: Say = lambda _: None
    ready_timeout: float = 600.0
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._restarted: list[str] = []
        self._lasting: tuple[str, ...] = ()
        self._units_changed = False
        self._services = Services(self.system, self.clock)

    def apply(self, plan: Plan) -> None:
        """Raises Undone."""
        total = len(plan.stages)
        for number, stage in enumerate(plan.stages, 1):
            begin = self.clock.monotonic()
            self.say(f"[{number}/{total}] {stage.name}")
            try:
                self._do_stage(stage)
            except (PodlaneError, OSError, KeyboardInterrupt) as error:
                why = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
                raise Undone(f"{stage.name}: {why}\n{self._roll_back()}") from error
            elapsed = self.clock.monotonic() - begin
            if elapsed >= 1:
                self.say(f"      {elapsed:.0f} s")

    def finish(self, plan: Plan) -> None:
        """Do all that can be done, and undo nothing. Raises ApplyError."""
        failures: list[tuple[str, Exception]] = []
        for number, stage in enumerate(plan.stages, 1):
            self.say(f"[{number}/{len(plan.stages)}] {stage.name}")
            for step in stage.steps:
                try:
                    self._do(step)
                except (PodlaneError, OSError) as error:
                    failures.append((stage.name, error))
                    self.say(f"      {error}")
        if failures:
            raise ApplyError(failures)

    def _do_stage(self, stage: Stage) -> None:
        for step in stage.steps:
            self._do(step)

    def _do(self, step: Step) -> None:
        match step:
            case Folder():
                if self.system.look(step.path) is None:
                    self._remember(f"remove {step.path}", lambda: self.system.remove(step.path))
                    self.system.make_folder(step.path, step.mode)
            case File():
                self._restore_later(step.path)
                self.system.write(step.path, step.content.encode(), step.mode)
            case Link():
                self._restore_later(step.path)
                self.system.link(step.path, step.target)
            case Remove():
                self.system.remove(step.path)
            case Command():
                self._command(step)
            case Start():
                self._start(step)

    # ---- doing ---------------------------------------------------------------------------------------

    def _command(self, step: Command) -> None:
        self._forget_later(step)
        try:
            self.system.run(step.argv, timeout=step.timeout, stdin=step.stdin)
        except PodlaneError as error:
            if not step.may_fail:
                raise
            self.say(f"      left out: {error}")
        else:
            self._keep(step.lasts)

    def _start(self, step: Start) -> None:
        before = self._services.state(step.unit)
        if before.active and not step.restart:
            return  # another unit has brought it along
        if before.active:
            self._restarted.append(step.unit)
        else:
            self._remember(f"stop {step.unit}", lambda: self._stop_again(step))
        self._services.start(step.unit, restart=step.restart)
        self._services.await_ready(
            step.unit, before, self.ready_timeout, self.stop, lambda text: self.say(f"      {text}")
        )

    # ---- undoing -------------------------------------------------------------------------------------

    def _remember(self, what: str, action: Callable[[], object]) -> None:
        self._undo.append((what, action))

    def _restore_later(self, path: str) -> None:
        self._units_changed = self._units_changed or path.startswith(UNITS)
        before = self.system.look(path)
        if before is None:
            self._remember(f"remove {path}", lambda: self.system.remove(path))
        elif before.kind == "link":
            self._remember(f"restore {path}", lambda: self.system.link(path, before.target))
        else:
            self._remember(f"restore {path}", lambda: self.system.write(path, before.content, before.mode))

    def _forget_later(self, step: Command) -> None:
        """What the command makes is removed, then its own undoing is run first."""
        for path in step.makes:
            before = self.system.look(path)
            if before is None:
                self._remember(f"remove {path}", lambda path=path: self.system.remove(path))  # type: ignore[misc]
            elif before.kind == "folder":
                known = frozenset(self.system.names(path))
                self._remember(f"clean {path}", lambda path=path, known=known: self._clean(path, known))  # type: ignore[misc]
            else:
                self._restore_later(path)
        if step.undo:
            self._remember(f"undo {step.argv[0]}", lambda: self._run_all(step.undo))

    def _keep(self, paths: tuple[str, ...]) -> None:
        """From now on these are not undone, nor the folders they are in."""
        kept = {f"{verb} {path}" for path in paths for verb in ("remove", "clean")}
        above = {f"remove {parent}" for path in paths for parent in PurePath(path).parents}
        self._undo = [(what, action) for what, action in self._undo if what not in kept | above]
        self._lasting += paths

    def _clean(self, folder: str, known: frozenset[str]) -> None:
        for name in self.system.names(folder):
            if name not in known:
                self.system.remove(f"{folder}/{name}")

    def _stop_again(self, step: Start) -> None:
        self._services.stop(step.unit)
        self._run_all(step.undo)

    def _run_all(self, commands: tuple[tuple[str, ...], ...]) -> None:
        for argv in commands:
            self.system.run(argv, timeout=120)

    def _roll_back(self) -> str:
        """Undo everything and say how that went."""
        self.say("failed; undoing what was done")
        problems: list[str] = []

        def attempt(what: str, action: Callable[[], object]) -> None:
            try:
                action()
            except (PodlaneError, OSError) as error:
                problems.append(f"{what}: {error}")

        for what, action in reversed(self._undo):
            attempt(what, action)
        if self._units_changed:
            attempt("reload units", self._services.reload)
        for unit in self._restarted:
            attempt(f"restart {unit}", lambda unit=unit: self._services.start(unit, restart=True))  # type: ignore[misc]
        if problems:
            return "undone, but for:\n" + "\n".join(problems)
        if self._lasting:
            return (
                f"everything that this run did is undone, but {', '.join(self._lasting)} stay: "
                "this host has joined, and the same command goes on from there"
            )
        return "everything that this run did is undone"
