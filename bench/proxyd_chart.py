"""The figures of proxyd as services grow, as text: `python -m bench.proxyd_chart ROWS.json docs/proxyd-scale.md`.

Owns: the part of that document between the two marks; the rest is written by
hand. Pure but for `main`. ROWS.json is what `./appliance bench proxyd -o json`
printed, one row a line; of a row that is there twice the last counts.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bench.rows import Row, human

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_WIDTH = 56  # characters of the longest bar
_GROUPS = (
    ("full", "Everything, into an empty kernel"),
    ("one_endpoint", "One pod of one service is replaced"),
    ("one_service_deleted", "One service is deleted"),
    ("one_percent", "100 services change"),
    ("resync", "Everything compared with the kernel (the peer: only listed)"),
)
_SIZE = re.compile(r"proxyd\.(?P<what>\w+?)_(?P<services>\d+)x(?P<each>\d+)$")


def read(text: str) -> dict[str, Row]:
    """Rows by name."""
    rows = [msgspec.json.decode(line, type=Row) for line in text.splitlines() if line.startswith("{")]
    return {row.name: row for row in rows}


def figures(rows: Mapping[str, Row]) -> str:
    """Charts and table, as Markdown. Raises ValueError when there is no row of proxyd."""
    ours = [row for name, row in rows.items() if name.startswith("proxyd.")]
    if not ours:
        raise ValueError("draw chart: expected rows of proxyd, got none")
    charts = [chart(title, _of(ours, what)) for what, title in _GROUPS if _of(ours, what)]
    machines = sorted({str(row.machine) for row in ours})
    return "\n\n".join((f"Measured on: {'; '.join(machines)}.", *charts, _table(ours)))


def _of(rows: Sequence[Row], what: str) -> list[tuple[str, Row]]:
    """A group's rows with their sizes, the fewest services first."""
    found = [(match, row) for row in rows if (match := _SIZE.match(row.name)) and match["what"] == what]
    found.sort(key=lambda pair: int(pair[0]["services"]))
    return [(f"{int(match['services']):,} × {match['each']}", row) for match, row in found]


def chart(title: str, rows: Sequence[tuple[str, Row]]) -> str:
    """Bars of ours and the peer's, on a scale by powers of ten that all of one chart share."""
    values = [value for _, row in rows for value in (row.value, row.peer_value) if value]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    if low == high:
        high += 1
    lines = [f"{'services':>12}  {'':<10}  {_scale(low, high)}"]
    for size, row in rows:
        lines.append(f"{size:>12}  {'Podlane':<10}  {_bar(row.value, low, high)} {human(row.value, row.unit)}")
        if row.peer_value:
            lines.append(
                f"{'':>12}  {'kube-proxy':<10}  {_bar(row.peer_value, low, high)} {human(row.peer_value, row.unit)}"
            )
    text = "\n".join(lines)
    return f"**{title}**\n\n```text\n{text}\n```"


def _scale(low: int, high: int) -> str:
    """Where each power of ten is; the last one's name ends at the end."""
    marks = [" "] * (_WIDTH + 8)
    for power in range(low, high + 1):
        name = human(10.0**power, "seconds")
        at = round((power - low) / (high - low) * _WIDTH)
        marks[at : at + len(name) + 1] = f"|{name}"
    return "".join(marks).rstrip()


def _bar(value: float, low: int, high: int) -> str:
    return "█" * max(1, round((math.log10(value) - low) / (high - low) * _WIDTH))


def _table(rows: Sequence[Row]) -> str:
    lines = ["| row | value | aim | peer | its value | ratio | runs |", "|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row.name):
        aim = "" if row.aim is None else human(row.aim, row.unit)
        theirs = "" if row.peer_value is None else human(row.peer_value, row.unit)
        ratio = "" if row.ratio is None else f"{row.ratio:.2g}"
        cells = (f"`{row.name}`", human(row.value, row.unit), aim, row.peer or "", theirs, ratio, str(row.runs))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def replaced(document: str, text: str) -> str:
    """The document with `text` between the marks. Raises ValueError when they are not there."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"put in figures: expected {BEGIN} and then {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        sys.exit("usage: python -m bench.proxyd_chart ROWS.json DOCUMENT.md")
    document = Path(argv[1])
    document.write_text(replaced(document.read_text(), figures(read(Path(argv[0]).read_text()))))


if __name__ == "__main__":
    main(sys.argv[1:])
