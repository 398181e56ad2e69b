"""What a benchmark is and what it gives: rows.

Owns: the declaration of a benchmark, a measured row, and its two forms (JSON,
table). Invariant: values are in base units (seconds, bytes, per second; a share
is of one), a row was declared before it was measured, and a ratio is always
ours / the peer's, so below 1 is better for seconds and bytes, above 1 for rates.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from bench.machine import Machine

Unit = Literal["seconds", "bytes", "bytes per second", "per second", "count", "share"]

Progress = Callable[[str], None]
"""Says on standard error what a benchmark is doing."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A row that a benchmark will give. `aim` is the value it should keep, if there is one."""

    name: str
    unit: Unit
    about: str
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A value: the median of `runs` runs. `peer` names what was measured beside it, if anything."""

    name: str
    value: float
    runs: int
    peer: str | None = None
    peer_value: float | None = None

    def __post_init__(self) -> None:
        if self.runs < 1 or not math.isfinite(self.value):
            raise ValueError(f"row {self.name}: expected a finite value of at least 1 run, got {self}")
        if (self.peer is None) != (self.peer_value is None):
            raise ValueError(f"row {self.name}: a peer and its value come together, got {self}")

    @classmethod
    def median(
        cls,
        name: str,
        samples: Sequence[float],
        *,
        peer: str | None = None,
        peer_samples: Sequence[float] | None = None,
    ) -> Measured:
        """Make a row of one sample a run, ours and the peer's."""
        return cls(
            name,
            statistics.median(samples),
            len(samples),
            peer,
            None if peer_samples is None else statistics.median(peer_samples),
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One piece of work that gives one row or several. `measure` raises PodlaneError when it cannot."""

    name: str
    rows: tuple[Declared, ...]
    measure: Callable[[Progress], Iterable[Measured]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.name != self.name and not row.name.startswith(f"{self.name}."):
                raise ValueError(f"benchmark {self.name}: row {row.name} does not begin with its name")


@dataclass(frozen=True, slots=True)
class Row:
    """A measured row with all that a reader needs."""

    name: str
    value: float
    unit: Unit
    peer: str | None
    peer_value: float | None
    ratio: float | None
    aim: float | None
    runs: int
    machine: Machine

    @classmethod
    def of(cls, measured: Measured, declared: Declared, machine: Machine) -> Row:
        ratio = measured.value / measured.peer_value if measured.peer_value else None
        return cls(
            declared.name,
            measured.value,
            declared.unit,
            measured.peer,
            measured.peer_value,
            ratio,
            declared.aim,
            measured.runs,
            machine,
        )

    def to_json(self) -> str:
        """One object on one line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that was really measured. `percent` is over 0 to 100."""
    if not samples or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(samples)} samples: expected 0 < percent ≤ 100 and samples")
    return sorted(samples)[math.ceil(percent / 100 * len(samples)) - 1]


def matches(row: str, wanted: str) -> bool:
    """Whether a NAME of the command line means this row: its name, or its name's beginning up to a dot."""
    return row == wanted or row.startswith(f"{wanted}.")


def table(rows: Sequence[Row]) -> str:
    """All rows below each other, for people."""
    lines = [("NAME", "VALUE", "AIM", "PEER", "PEER VALUE", "RATIO", "RUNS")]
    for row in rows:
        lines.append(
            (
                row.name,
                human(row.value, row.unit),
                "-" if row.aim is None else human(row.aim, row.unit),
                row.peer or "-",
                "-" if row.peer_value is None else human(row.peer_value, row.unit),
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                str(row.runs),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def human(value: float, unit: Unit) -> str:
    """The value with a unit that suits its size."""
    if unit == "seconds":
        for limit, factor, name in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
            if abs(value) < limit:
                return f"{value * factor:.3g} {name}"
        return f"{value:.3g} s" if abs(value) < 100 else f"{value:.0f} s"
    if unit == "share":
        return f"{value * 100:.3g} %"
    if unit in {"bytes", "bytes per second"}:
        rate = "/s" if unit == "bytes per second" else ""
        for limit, factor, name in ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (math.inf, 1e9, "GB")):
            if abs(value) < limit:
                return f"{value / factor:.4g} {name}{rate}"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text}/s" if unit == "per second" else text
