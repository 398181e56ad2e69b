"""Printing objects in the formats of `-o`.

Owns: json, yaml, name, and the tables of several kinds below each other.
Data goes to stdout, "No resources found" to stderr, as with kubectl.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from podlane.api.types import Object
from podlane.cli.resources import full_name
from podlane.cli.tables import TABLES
from podlane.runtime.text import TableWriter, pairs

OBJECT_FORMATS = ("json", "yaml", "name")


def to_json(value: Any) -> str:
    import json

    return json.dumps(value, indent=4, ensure_ascii=False)


def to_yaml(value: Any) -> str:
    """YAML without a trailing newline, keys in the order given."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return text.rstrip("\n")


def print_objects(objects: Sequence[Object], output: str, *, single: bool = False) -> None:
    """Print as `json`, `yaml` or `name`; more than a `single` asked-for object as a List."""
    from podlane.api.codec import to_builtins

    if output == "name":
        for obj in objects:
            click.echo(full_name(obj))
        return
    if single and len(objects) == 1:
        value: Any = to_builtins(objects[0])
    else:
        value = {
            "apiVersion": "v1",
            "kind": "List",
            "metadata": {"resourceVersion": ""},
            "items": [to_builtins(obj) for obj in objects],
        }
    click.echo(to_json(value) if output == "json" else to_yaml(value))


class TablePrinter:
    """Rows of one kind on stdout; later batches keep the columns of the first (for --watch)."""

    def __init__(
        self,
        cls: type[Object],
        *,
        wide: bool = False,
        headers: bool = True,
        with_namespace: bool = False,
        with_kind: bool = False,
        show_labels: bool = False,
    ) -> None:
        self._table = TABLES[cls]
        self._wide = wide
        self._headers = headers
        self._with_namespace = with_namespace
        self._with_kind = with_kind
        self._show_labels = show_labels
        self._writer = TableWriter()

    def print(self, objects: Sequence[Object], now: datetime) -> None:
        rows = [self._row(obj, now) for obj in objects]
        if self._headers and rows:
            rows.insert(0, self._header())
            self._headers = False
        for line in self._writer.render(rows):
            click.echo(line)

    def _header(self) -> list[str]:
        header = self._table.header(wide=self._wide)
        if self._with_namespace:
            header.insert(0, "NAMESPACE")
        if self._show_labels:
            header.append("LABELS")
        return header

    def _row(self, obj: Object, now: datetime) -> list[str]:
        row = self._table.row(obj, now, wide=self._wide)
        if self._with_kind:
            names = [i for i, column in enumerate(self._table.header(wide=self._wide)) if column == "NAME"]
            row[names[0] if names else 0] = full_name(obj) if names else row[0]
        if self._with_namespace:
            row.insert(0, obj.metadata.namespace)
        if self._show_labels:
            row.append(pairs(obj.metadata.labels))
        return row
