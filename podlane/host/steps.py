"""What a plan for a host is made of, and its print: what an operator would type. Pure.

Owns: the kinds of steps. Invariant: each says enough to be undone: what a file
was before is looked up when the step is done, what a command makes is named by
`makes`, what it started by `undo`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

COMMAND_TIMEOUT = 3600.0
"""Seconds. Unpacking a virtual environment takes 6 here, and on an emulated machine tens of minutes."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Made if it is not there; one that is there is left as it is."""

    path: str
    mode: int = 0o755

    def __str__(self) -> str:
        return f"install -d -m {self.mode:04o} {self.path}"


@dataclass(frozen=True, slots=True)
class File:
    path: str
    content: str
    mode: int = 0o644

    def __str__(self) -> str:
        return f"install -m {self.mode:04o} /dev/stdin {self.path} <<'END'\n{self.content.rstrip()}\nEND"


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    target: str

    def __str__(self) -> str:
        return f"ln -sfn {self.target} {self.path}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Of a file, a link or a folder. Comes last in a plan: it cannot be undone."""

    path: str

    def __str__(self) -> str:
        return f"rm -rf {shlex.quote(self.path)}"


@dataclass(frozen=True, slots=True)
class Command:
    """`makes`: paths that are new after it; a folder among them counts by what is new in it. `stdin` is never shown.
    `lasts`: paths that stay when a later step fails, since what made them cannot be done twice.

    `may_fail`: the plan goes on, and says so. `undo` are commands, in the order they are run.
    """

    argv: tuple[str, ...]
    makes: tuple[str, ...] = ()
    lasts: tuple[str, ...] = ()
    undo: tuple[tuple[str, ...], ...] = ()
    stdin: str = ""
    timeout: float = COMMAND_TIMEOUT
    may_fail: bool = False

    def __str__(self) -> str:
        secret = " <<< (the token)" if self.stdin else ""
        return shlex.join(self.argv) + secret + (" || true" if self.may_fail else "")


@dataclass(frozen=True, slots=True)
class Start:
    """Start a unit, or restart it, and wait until it says that it is ready.

    `undo` are commands to run after it was stopped, where it did not run before.
    """

    unit: str
    restart: bool = False
    undo: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        return f"systemctl {'restart' if self.restart else 'start'} {self.unit}"


Step = Folder | File | Link | Remove | Command | Start


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that are told of as one."""

    name: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"# {self.name}", *map(str, self.steps)])


@dataclass(frozen=True, slots=True)
class Plan:
    """`notes` are for the operator, whatever becomes of the plan."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(step for stage in self.stages for step in stage.steps)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.stages))


def stages(pairs: Iterable[tuple[str, Iterable[Step]]]) -> tuple[Stage, ...]:
    """Without those that have nothing to do."""
    made = (Stage(name, tuple(steps)) for name, steps in pairs)
    return tuple(stage for stage in made if stage.steps)
