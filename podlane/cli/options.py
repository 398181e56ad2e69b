"""Options that several commands have in common, so that they mean the same everywhere.

Owns: `-f`, `-l`, `-o`, `-A`, `--dry-run`, `--wait`, `--timeout`, the duration
type, and the checks that go with them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from podlane.api.manifest import Manifest
    from podlane.api.selectors import Selector

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of `90`, `1.5s`, `2m`, `1h30m` (Go's durations, and a bare number of seconds).

    Raises ValueError.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    if not text or _PART.sub("", text):
        raise ValueError(f'expected a duration such as 30s, 5m or 1h30m, got "{text}"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


class DurationType(click.ParamType[float]):
    """Seconds, as a float."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


def filename_option(command: F) -> F:
    """`-f`, repeatable: passes `filenames: tuple[str, ...]`."""
    return click.option(
        "-f",
        "--filename",
        "filenames",
        multiple=True,
        metavar="FILE|DIR|-",
        type=click.Path(),  # for completion; whether they exist is said with all other errors
        help="Manifest file, directory, or - for standard input; repeatable.",
    )(command)


def selector_option(command: F) -> F:
    """`-l`: passes `selector: Selector | None`."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Selector | None:
        del ctx, param
        if value is None:
            return None
        from podlane.api.selectors import parse

        return parse(value)

    return click.option(
        "-l",
        "--selector",
        metavar="QUERY",
        callback=convert,
        help="Only objects with these labels: k=v, k!=v, k in (a,b), k, !k; joined by commas.",
    )(command)


def all_namespaces_option(command: F) -> F:
    return click.option("-A", "--all-namespaces", is_flag=True, help="Objects of every namespace.")(command)


def output_option(*formats: str, default: str | None = None) -> Callable[[F], F]:
    """`-o`: passes `output: str | None`."""
    return click.option("-o", "--output", type=click.Choice(formats), default=default, help="Output format.")


def dry_run_option(command: F) -> F:
    return click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")(command)


def no_headers_option(command: F) -> F:
    return click.option("--no-headers", is_flag=True, help="Leave out the line of column names.")(command)


def timeout_option(default: str, what: str) -> Callable[[F], F]:
    """`--timeout` in seconds; 0 means no limit."""
    return click.option("--timeout", type=DURATION, default=default, show_default=True, help=what)


def load_manifests(filenames: tuple[str, ...], *, namespace: str) -> list[Manifest]:
    """Read and check every manifest; one that names no namespace gets `namespace`.

    Raises Invalid with all errors of all files.
    """
    from podlane.api.manifest import load

    return load(filenames, sys.stdin, namespace=namespace)
