"""How values look on a terminal: durations, tables, label lists.

Owns: formatting that several commands share. The rules are kubectl's
(apimachinery's `duration.HumanDuration`; cli-runtime's tabwriter: cells at
least six wide, three blanks between columns), so that scripts and eyes
trained on kubectl work here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

NONE = "<none>"
UNKNOWN = "<unknown>"

_MIN_WIDTH = 6
_PADDING = 3

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_YEAR = 365 * _DAY


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large}{unit}{small}{small_unit}" if small else f"{large}{unit}"


def human_duration(seconds: float) -> str:
    """`5m3s`, `7h2m`, `12d`: fewer digits the longer it is. One second ahead is skew."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    s = max(s, 0)
    if s < 2 * _MINUTE:
        text = f"{s}s"
    elif s < 10 * _MINUTE:
        text = _two(s // _MINUTE, "m", s % _MINUTE, "s")
    elif s < 3 * _HOUR:
        text = f"{s // _MINUTE}m"
    elif s < 8 * _HOUR:
        text = _two(s // _HOUR, "h", s % _HOUR // _MINUTE, "m")
    elif s < 2 * _DAY:
        text = f"{s // _HOUR}h"
    elif s < 8 * _DAY:
        text = _two(s // _DAY, "d", s % _DAY // _HOUR, "h")
    elif s < 2 * _YEAR:
        text = f"{s // _DAY}d"
    elif s < 8 * _YEAR:
        text = _two(s // _YEAR, "y", s % _YEAR // _DAY, "d")
    else:
        text = f"{s // _YEAR}y"
    return text


def age(since: datetime | None, now: datetime) -> str:
    """The time from `since` to `now`, `<unknown>` when it was never set."""
    return UNKNOWN if since is None else human_duration((now - since).total_seconds())


def rfc1123(when: datetime | None) -> str:
    """`Mon, 02 Jan 2006 15:04:05 +0000`, as describe prints times."""
    return UNKNOWN if when is None else when.strftime("%a, %d %b %Y %H:%M:%S +0000")


def pairs(labels: Mapping[str, str], separator: str = ",") -> str:
    """`a=1,b=2` in key order, `<none>` when empty."""
    return separator.join(f"{key}={labels[key]}" for key in sorted(labels)) or NONE


class TableWriter:
    """Aligns rows; remembers widths, so that rows of a later batch (watch) keep the columns.

    A column only ever gets wider.
    """

    def __init__(self) -> None:
        self._widths: list[int] = []

    def render(self, rows: Iterable[Sequence[str]]) -> list[str]:
        """The rows as lines. The last cell of a row is not padded."""
        batch = [[" ".join(cell.split("\n")) for cell in row] for row in rows]
        for row in batch:
            self._widths.extend([_MIN_WIDTH] * (len(row) - len(self._widths)))
            for i, cell in enumerate(row):
                self._widths[i] = max(self._widths[i], len(cell) + _PADDING)
        return [
            "".join(cell.ljust(width) for cell, width in zip(row[:-1], self._widths, strict=False)) + row[-1]
            for row in batch
        ]


def table(rows: Iterable[Sequence[str]]) -> str:
    """Aligned lines joined with newlines, for one batch."""
    return "\n".join(TableWriter().render(rows))
