"""A host that is not there: files in a dict, a systemd that minds its rules.

Owns: system.System for tests. It refuses what the real one refuses: a unit without a
file, one that changed since the last daemon-reload, a folder that is there already. A unit
in `broken` ends when it starts; `fail_at` lets the n-th change fail, so that a test
can interrupt a plan anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from podlane.errors import PodlaneError
from podlane.host.layout import UNITS
from podlane.host.system import Found
from podlane.runtime.command import CommandError, Completed

Effect = Callable[["FakeSystem", Sequence[str]], None]


@dataclass
class FakeSystem:
    """`effects`: what a program does, by the last parts of its path and words (`podlane host keys`)."""

    files: dict[str, Found] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    enabled: set[str] = field(default_factory=set)
    fail_at: int = -1
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loaded: dict[str, bytes] = {}
        self._failed: set[str] = set()
        self._lives: dict[str, int] = {}
        self.changes = 0

    # ---- files ---------------------------------------------------------------------------------------

    def look(self, path: str) -> Found | None:
        if path in self.files:
            return self.files[path]
        return Found("folder", mode=0o755) if any(each.startswith(f"{path}/") for each in self.files) else None

    def names(self, folder: str) -> tuple[str, ...]:
        inside = (path[len(folder) + 1 :] for path in self.files if path.startswith(f"{folder}/"))
        return tuple(sorted({name.partition("/")[0] for name in inside}))

    def write(self, path: str, content: bytes, mode: int) -> None:
        self._change(f"write {path}")
        self.files[path] = Found("file", content, mode=mode)

    def make_folder(self, path: str, mode: int) -> None:
        if self.look(path) is not None:
            raise PodlaneError(f"make folder {path}: File exists")
        self._change(f"folder {path}")
        self.files[path] = Found("folder", mode=mode)

    def link(self, path: str, target: str) -> None:
        self._change(f"link {path} {target}")
        self.files[path] = Found("link", target=target)

    def remove(self, path: str) -> None:
        self._change(f"remove {path}")
        for each in [each for each in self.files if each == path or each.startswith(f"{path}/")]:
            del self.files[each]

    def _change(self, what: str) -> None:
        self.log.append(what)
        self.changes += 1
        if self.changes == self.fail_at:
            raise PodlaneError(f"{what}: no space left on device")

    # ---- programs ------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], *, timeout: float, stdin: str = "", check: bool = True) -> Completed:
        del timeout, stdin
        if argv[0] == "systemctl":
            done = self._systemctl(*argv[1:])
        else:
            if argv[0] not in ("docker", "cat", "journalctl"):
                self._change(" ".join(argv))
            if argv[0] == "mkdir":
                self.files[argv[-1]] = Found("folder", mode=0o755)
            elif tuple(argv[:2]) == ("rm", "-rf"):
                self.remove(argv[2])
            words = " ".join((argv[0].rpartition("/")[2], *argv[1:]))
            for name, effect in self.effects.items():
                if words.startswith(name):
                    effect(self, argv)
            done = Completed("", "", 0)
        if check and done.returncode != 0:
            raise CommandError(argv, f"exit {done.returncode}: {done.stderr}", returncode=done.returncode)
        return done

    def _systemctl(self, *words: str) -> Completed:
        verb = next(word for word in words if not word.startswith("--"))
        units = [word for word in words[words.index(verb) + 1 :] if not word.startswith("--")]
        match verb:
            case "is-active":
                return Completed("", "", 0 if units[0] in self.running else 3)
            case "is-enabled":
                return Completed("", "", 0 if units[0] in self.enabled else 1)
            case "show":
                return Completed(self._shown(units[-1]), "", 0)
            case "reset-failed" | "try-reload-or-restart":
                return Completed("", "", 0)
        self._change(f"systemctl {' '.join((verb, *units))}")
        if verb == "daemon-reload":
            self._loaded = {p: f.content for p, f in self.files.items() if p.startswith(f"{UNITS}/")}
            return Completed("", "", 0)
        problem = "".join(self._act(verb, unit) for unit in units)
        return Completed("", problem, 5 if problem else 0)

    def _act(self, verb: str, unit: str) -> str:
        path = f"{UNITS}/{unit}"
        if verb in ("enable", "start", "restart") and path not in self.files:
            return f"Unit {unit} not found."
        if verb in ("start", "restart") and self._loaded.get(path) != self.files[path].content:
            return f"{unit} changed on disk; daemon-reload was forgotten"
        if verb in ("enable", "disable"):
            (self.enabled.add if verb == "enable" else self.enabled.discard)(unit)
        elif verb == "stop":
            self.running.discard(unit)
        else:
            self._lives[unit] = self._lives.get(unit, 0) + 1
            good = unit not in self.broken
            (self.running.add if good else self.running.discard)(unit)
            (self._failed.discard if good else self._failed.add)(unit)
        return ""

    def _shown(self, unit: str) -> str:
        state = "active" if unit in self.running else "failed" if unit in self._failed else "inactive"
        return f"ActiveState={state}\nResult=exit-code\nNRestarts=0\nInvocationID={self._lives.get(unit, 0)}\n"
