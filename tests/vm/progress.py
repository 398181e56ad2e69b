"""Steps with progress, timings and a memory, so that a run can go on after an interruption.

Owns: the order of the steps, what is remembered of each, and the report.
Invariants: a step that was seen to succeed is not repeated by a resumed run; a
step is remembered only when it succeeded; after a failure nothing else runs;
the verdict is good only if every step of the story was seen to succeed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from podlane.errors import PodlaneError, UsageError
from podlane.runtime.clock import Clock

REPEAT_SECONDS = 30.0  # how often a long step says that it still goes on

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """`act` returns what was seen, in a sentence, or raises PodlaneError."""

    name: str
    about: str
    act: Callable[[], str]


@dataclass(frozen=True)
class Outcome:
    """`state` is done, earlier (in a run that this one resumes), failed or missing."""

    name: str
    about: str
    state: str
    seconds: float = 0.0
    seen: str = ""


class Progress:
    """Runs steps and remembers them in `memory`, a JSON file."""

    def __init__(self, memory: Path, clock: Clock, say: Say) -> None:
        self._memory, self._clock, self._say = memory, clock, say
        self._now = ""

    def note(self, text: str) -> None:
        """What the step that runs is doing or waiting for."""
        self._now = text
        self._say(f"    {text}")

    def run(self, steps: Sequence[Step], *, only: Collection[str] = ()) -> list[Outcome]:
        """Run what was not done before, or exactly the steps of `only`."""
        unknown = set(only) - {step.name for step in steps}
        if unknown:
            names = ", ".join(step.name for step in steps)
            raise UsageError(f"--only {', '.join(sorted(unknown))}: no such step; there are {names}")
        outcomes: list[Outcome] = []
        failed = False
        for step in steps:
            earlier = self._recall().get(step.name)
            wanted = step.name in only if only else earlier is None
            if wanted and not failed:
                outcome = self._run(step)
                failed = outcome.state == "failed"
            elif earlier is not None:
                outcome = Outcome(step.name, step.about, "earlier", earlier["seconds"], earlier["seen"])
            else:
                outcome = Outcome(step.name, step.about, "missing")
            outcomes.append(outcome)
        return outcomes

    def _run(self, step: Step) -> Outcome:
        self._say(f"== {step.name}: {step.about}")
        self._now = ""
        begin = self._clock.monotonic()
        over = threading.Event()
        reminder = threading.Thread(target=self._remind, args=(step.name, begin, over), daemon=True)
        reminder.start()
        try:
            state, seen = "done", step.act()
        except PodlaneError as error:
            state, seen = "failed", str(error)
        finally:
            over.set()
            reminder.join()
        seconds = round(self._clock.monotonic() - begin, 1)
        self._remember(step.name, {"seconds": seconds, "seen": seen} if state == "done" else None)
        self._say(f"   {step.name}: {state} after {seconds:.1f} s: {seen}")
        return Outcome(step.name, step.about, state, seconds, seen)

    def _remind(self, name: str, begin: float, over: threading.Event) -> None:
        while not over.wait(REPEAT_SECONDS):
            doing = f": {self._now}" if self._now else ""
            self._say(f"    {name} goes on, {self._clock.monotonic() - begin:.0f} s{doing}")

    def _recall(self) -> dict[str, dict[str, float | str]]:
        try:
            return dict(json.loads(self._memory.read_text()))
        except FileNotFoundError:
            return {}

    def _remember(self, name: str, seen: dict[str, float | str] | None) -> None:
        """None: what was seen of it earlier counts no more."""
        known = {key: value for key, value in self._recall().items() if key != name}
        new = self._memory.with_suffix(".new")
        new.write_text(json.dumps(known | ({name: seen} if seen else {}), indent=1))
        new.rename(self._memory)


def succeeded(outcomes: Sequence[Outcome]) -> bool:
    return all(outcome.state in ("done", "earlier") for outcome in outcomes)


def table(outcomes: Sequence[Outcome]) -> str:
    """The report for people."""
    width = max(len("STEP"), *(len(outcome.name) for outcome in outcomes))
    lines = [f"{'STEP':<{width}}  {'STATE':<7}  {'SECONDS':>7}  SEEN"]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:.1f}" if outcome.state != "missing" else "-"
        seen = (outcome.seen.splitlines() or [""])[0] or outcome.about
        lines.append(f"{outcome.name:<{width}}  {outcome.state:<7}  {seconds:>7}  {seen}")
    total = sum(outcome.seconds for outcome in outcomes)
    verdict = "everything was seen" if succeeded(outcomes) else "NOT everything was seen"
    lines.append(f"{verdict}; {total / 60:.1f} minutes")
    return "\n".join(lines)


def report(outcomes: Sequence[Outcome]) -> str:
    """The report for scripts."""
    total = round(sum(outcome.seconds for outcome in outcomes), 1)
    steps = [asdict(outcome) for outcome in outcomes]
    return json.dumps({"ok": succeeded(outcomes), "seconds": total, "steps": steps}, indent=2)
