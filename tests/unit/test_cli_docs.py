"""docs/cli.md knows every command there is."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from podlane.cli.main import cli

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs"
GROUPS = ("host", "pki", "etcd")


def test_every_command_is_in_the_tables() -> None:
    rows = [
        re.split(r"(?<!\\)\|", line)[1] for line in (DOCS / "cli.md").read_text().splitlines() if line.startswith("| `")
    ]
    told = [words for row in rows for words in re.findall(r"`([^`]*)`", row)]
    context = click.Context(cli)
    missing = [name for name in cli.list_commands(context) if not any(each.split()[0] == name for each in told)]
    for name in GROUPS:
        group = cli.get_command(context, name)
        assert isinstance(group, click.Group)
        wanted = [f"{name} {each}" for each in group.list_commands(context)]
        missing += [each for each in wanted if not any(words.startswith(each) for words in told)]
    assert missing == []
