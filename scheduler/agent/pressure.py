"""Whether a node runs short of memory, disk or process numbers: the pressure conditions.

Owns: the thresholds, and when a condition begins and ends. Pure. Invariants: a
condition begins at once and ends only after TRANSITION seconds without its
cause, so that a node at its limit does not go back and forth; a message does
not change while its condition does not, so it names thresholds and no amounts.
Source: the kubelet's signals, hard eviction thresholds and transition period
(pkg/kubelet/eviction); it has no default threshold for process numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from podlane.api import quantity

Signal = Literal[
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
]
Pressure = Literal["MemoryPressure", "DiskPressure", "PIDPressure"]

TRANSITION = 300.0
"""Seconds that a condition stays after its cause went."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, inodes or processes: what is left, of how much."""

    available: int
    capacity: int


Usage = Mapping[Signal, Amount]
"""What could be measured; what could not is left out and says nothing."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Pressure is less than `amount`, or than `share` of the capacity."""

    amount: int = 0
    share: float = 0.0
    text: str = ""

    def of(self, capacity: int) -> int:
        return max(self.amount, int(self.share * capacity))


DEFAULT_THRESHOLDS = (
    "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,"
    "imagefs.available<15%,imagefs.inodesFree<5%,pid.available<2%"
)
Thresholds = Mapping[Signal, Threshold]

_CONDITIONS: Mapping[Pressure, tuple[Signal, ...]] = {
    "MemoryPressure": ("memory.available",),
    "DiskPressure": ("nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"),
    "PIDPressure": ("pid.available",),
}
_SIGNALS: tuple[Signal, ...] = tuple(signal for signals in _CONDITIONS.values() for signal in signals)
_WORDS: Mapping[Pressure, tuple[str, str, str]] = {
    "MemoryPressure": ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "there is enough memory"),
    "DiskPressure": ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "there is enough disk"),
    "PIDPressure": ("KubeletHasInsufficientPID", "KubeletHasSufficientPID", "there are enough process numbers"),
}


def parse_thresholds(text: str) -> dict[Signal, Threshold]:
    """`memory.available<200Mi,nodefs.available<5%` over the defaults. Raises ValueError, naming what is wrong."""
    found: dict[Signal, Threshold] = {}
    for part in (p.strip() for p in f"{DEFAULT_THRESHOLDS},{text}".split(",")):
        if not part:
            continue
        name, less, value = part.partition("<")
        signal = next((s for s in _SIGNALS if s == name.strip()), None)
        if signal is None or not less:
            raise ValueError(f'expected SIGNAL<AMOUNT with a signal of {", ".join(_SIGNALS)}, got "{part}"')
        found[signal] = _threshold(name.strip(), value.strip())
    return found


def _threshold(name: str, value: str) -> Threshold:
    try:
        if value.endswith("%"):
            share = float(value[:-1]) / 100
            if not 0 <= share < 1:
                raise ValueError(f"expected 0% to less than 100%, got {value}")
            return Threshold(share=share, text=value)
        amount = quantity.bytes_(value)
        if amount < 0:
            raise ValueError(f"expected 0 or more, got {value}")
        return Threshold(amount=amount, text=value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@dataclass(frozen=True, slots=True)
class State:
    """One condition: since when (monotonic seconds) its cause was last seen, and what that was."""

    last: float
    cause: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to say of one condition."""

    type: Pressure
    pressed: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """`states` is what to pass in next time."""

    verdicts: tuple[Verdict, ...]
    states: Mapping[Pressure, State] = field(default_factory=dict)


def judge(usage: Usage, thresholds: Thresholds, states: Mapping[Pressure, State], now: float) -> Judgement:
    """Say what is short. `now` in monotonic seconds; `states` the last judgement's, empty at first."""
    kept: dict[Pressure, State] = {}
    verdicts: list[Verdict] = []
    for kind, signals in _CONDITIONS.items():
        cause = _cause(usage, thresholds, signals)
        before = states.get(kind)
        if cause:
            kept[kind] = State(now, cause)
        elif before is not None and now < before.last + TRANSITION:
            kept[kind] = before
        short, enough, message = _WORDS[kind]
        if (state := kept.get(kind)) is not None:
            verdicts.append(Verdict(kind, True, short, state.cause))
        else:
            verdicts.append(Verdict(kind, False, enough, message))
    return Judgement(tuple(verdicts), kept)


def _cause(usage: Usage, thresholds: Thresholds, signals: Sequence[Signal]) -> str:
    """The thresholds that are crossed, for people; "" if none is."""
    crossed: list[str] = []
    for signal in signals:
        amount, threshold = usage.get(signal), thresholds.get(signal)
        if amount is not None and threshold is not None and amount.available < threshold.of(amount.capacity):
            crossed.append(f"{signal} is less than {threshold.text}")
    return ", ".join(crossed)
