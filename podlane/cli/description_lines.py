"""The lines that the texts of `describe` are made of: fields, maps, tables below a title.

Pure. Source: kubectl's (staging/src/k8s.io/kubectl/pkg/describe).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from podlane.api.types import Condition, Object
from podlane.runtime.text import NONE, TableWriter, rfc1123

COLUMN = 18
"""Width of the names at the top level."""

Lines = Iterator[str]


def field(name: str, value: object, width: int = COLUMN) -> str:
    return f"{name + ':':<{width}}{value}"


def mapping(name: str, values: Mapping[str, str]) -> Lines:
    """`Labels:  a=1`, one pair a line."""
    yield from several(name, [f"{key}={values[key]}" for key in sorted(values)])


def several(name: str, texts: Sequence[str]) -> Lines:
    """One a line, the name beside the first."""
    for index, text in enumerate(texts or [NONE]):
        yield field(name, text) if index == 0 else " " * COLUMN + text


def indented(lines: Iterable[str], by: int = 2) -> Lines:
    for line in lines:
        yield " " * by + line


def grid(*rows: Sequence[str]) -> Lines:
    """A table below a title, with ruled headers."""
    header, *rest = rows
    ruled = [list(header), ["-" * len(cell) for cell in header], *rest]
    yield from indented(TableWriter().render(ruled))


def condition_lines(conditions: Sequence[Condition], *, full: bool = False) -> Lines:
    if not conditions:
        yield field("Conditions", NONE)
        return
    yield "Conditions:"
    unplaced = [c for c in conditions if c.type == "PodScheduled" and c.status == "False" and c.message]
    if not full and unplaced:  # also said by an event, but events end after an hour
        said = ((c.type, c.status, c.message if c in unplaced else "") for c in conditions)
        yield from grid(("Type", "Status", "Message"), *said)
        return
    if not full:
        yield from grid(("Type", "Status"), *((c.type, c.status) for c in conditions))
        return
    rows = [(c.type, c.status, rfc1123(c.last_transition_time), c.reason, c.message) for c in conditions]
    yield from grid(("Type", "Status", "LastTransitionTime", "Reason", "Message"), *rows)


def top(obj: Object) -> Lines:
    yield field("Name", obj.metadata.name)
    if type(obj).NAMESPACED:
        yield field("Namespace", obj.metadata.namespace)


def labels(obj: Object) -> Lines:
    yield from mapping("Labels", obj.metadata.labels)
    yield from mapping("Annotations", shown_annotations(obj))


def shown_annotations(obj: Object) -> dict[str, str]:
    from podlane.cli.merge import LAST_APPLIED

    return {key: value for key, value in obj.metadata.annotations.items() if key != LAST_APPLIED}
