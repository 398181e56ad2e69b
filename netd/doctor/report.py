"""Findings as a person or a program reads them.

Owns: both forms. In the text, one line a check; below it each finding that is
not ok, with what is wrong, what shows it and what to type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from netd.doctor.finding import Finding

_HEADER = ("CHECK", "PEER", "RESULT", "WHAT")


def render(findings: Sequence[Finding], output: str) -> str:
    """`output` is "table" or "json". Ends with a newline."""
    if output == "json":
        return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False) + "\n"
    rows = [_HEADER, *((each.check, each.peer or "-", each.severity, each.what) for each in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows]
    wrong = [each for each in findings if each.severity != "ok"]
    for each in sorted(wrong, key=lambda finding: finding.severity != "error"):
        title = f"{each.severity}: {each.check}" + (f" ({each.peer})" if each.peer else "")
        lines += ["", title, f"  what      {each.what}", f"  evidence  {each.evidence}", f"  fix       {each.fix}"]
    return "\n".join([*lines, "", _summary(findings)]) + "\n"


def _summary(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(each.severity == severity for each in findings) for severity in ("error", "warning", "ok")}
    return f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} checks ok"
