"""Requests that go on inside a machine while something is done to the cluster.

Owns: the loop that asks and its count. Invariant: each request has a new
connection and a deadline, so a dead pod costs one failure and not the loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.vm.machine import Machine

DEADLINE = 5  # seconds for one request
_FOLDER = "/run/podlane-traffic"


@dataclass(frozen=True)
class Count:
    """Who answered how often, and the longest time in which nobody did (seconds)."""

    answers: Counter[str]
    failed: int
    longest: int

    def __str__(self) -> str:
        failed = f", {self.failed} failed (for {self.longest} s at most)" if self.failed else ", none failed"
        return f"{sum(self.answers.values())} requests answered by {len(self.answers)} pods{failed}"


class Traffic:
    """Asks a service's address over and over, from `machine`."""

    def __init__(self, machine: Machine, address: str) -> None:
        self._machine, self._address = machine, address

    def __enter__(self) -> Traffic:
        loop = (
            f"while [ -e {_FOLDER}/on ]; do answer=$(curl -sf -m {DEADLINE} http://{self._address}/) || answer=FAILED; "
            "echo $(date +%s) $answer; sleep 1; done"
        )
        self._machine.guest.run(
            f"mkdir -p {_FOLDER}; touch {_FOLDER}/on; ( {loop} ) > {_FOLDER}/log 2>&1 < /dev/null &"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.guest.run(f"rm -f {_FOLDER}/on", check=False)

    def count(self) -> Count:
        return counted(self._machine.guest.run(f"cat {_FOLDER}/log").stdout)


def counted(log: str) -> Count:
    """Of lines `SECOND NAME`, where the name FAILED is nobody's."""
    answers: Counter[str] = Counter()
    failed = longest = 0
    since: int | None = None
    for line in log.splitlines():
        second, _, name = line.partition(" ")
        if name != "FAILED":
            answers[name] += 1
            since = None
            continue
        failed += 1
        since = int(second) if since is None else since
        longest = max(longest, int(second) - since + 1)
    return Count(answers, failed, longest)
