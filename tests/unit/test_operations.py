"""docs/operations.md and vagrant/README.md: links lead somewhere, and what they tell to type is there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "operations.md", ROOT / "vagrant" / "README.md"]
PROGRAMS = {"podlane": "podlane.cli.main:cli", "netd": "netd.cli:main", "proxyd": "proxyd.cli:main"}
NAMES = "|".join(PROGRAMS)


def anchors(page: Path) -> set[str]:
    """As a forge makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def typed(text: str) -> Iterator[list[str]]:
    """Each command of ours in a code span or a block, as words; the bundle's are `podlane host`'s."""
    spans = re.findall(r"`([^`\n]+)`", text)
    lines = [line.strip() for line in re.findall(r"^(?: {4}|sudo |podlane ).+$", text, re.MULTILINE)]
    for line in (*spans, *lines):
        bare = re.sub(r"podlane-\w+\.run", "podlane host", line).replace("host preflight", "preflight")
        for part in re.split(r"[|;…#]| {2,}| -c '", bare):
            if found := re.search(rf"^\W*(?:sudo |sh |-i )*\b((?:{NAMES}) .+)", part):
                yield shlex.split(found[1].rstrip("')"), posix=True)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that is meant, and the rest of the words. Raises AssertionError for one that is not there."""
    module, _, name = PROGRAMS[words[0]].partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            break
        command, rest = found, rest[1:]
    if isinstance(command, click.Group) and command.name == "join-token":
        command = command.get_command(click.Context(command), "create") or command
    return command, rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path) -> None:
    seen = set()
    for words in typed(page.read_text()):
        command, rest = command_of(words)
        assert not isinstance(command, click.Group), words
        seen.add(command.name)
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for word in rest:
            if word == "--":
                break
            if word.startswith("--"):
                assert word.partition("=")[0] in known | {"--help"}, f"{' '.join(words)}: no {word}"
    assert len(seen) >= (25 if page.name == "operations.md" else 3)
