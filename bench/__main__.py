"""The command: choose benchmarks, run them, print their rows."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Sequence

import click

import bench
from bench.machine import Machine, this_machine
from bench.rows import Benchmark, Measured, Row, matches, table
from podlane.errors import PodlaneError


def discover() -> tuple[Benchmark, ...]:
    """Collect the BENCHMARKS of every module of this package, in order of module name."""
    found: list[Benchmark] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(bench.__path__) if info.name != "__main__"):
        found += getattr(importlib.import_module(f"bench.{module}"), "BENCHMARKS", ())
    return tuple(found)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: one object a line.",
)
@click.option("--list", "list_", is_flag=True, help="Only say what can be measured.")
def main(names: tuple[str, ...], output: str, list_: bool) -> None:
    """Measure, and print one row a measurement.

    NAME is a row (pods.start_p99) or the beginning of several (pods); without
    one, everything is measured. Progress goes to standard error.
    """
    sys.exit(run(discover(), names, output=output, only_list=list_))


def run(
    benchmarks: Sequence[Benchmark], names: Sequence[str], *, output: str = "table", only_list: bool = False
) -> int:
    """Do what the command does and return its exit code: 0, 1 (one failed), 2 (no such name)."""
    known = [row.name for b in benchmarks for row in b.rows]
    unknown = [name for name in names if not any(matches(row, name) for row in known)]
    if unknown:
        _say(f"measure {', '.join(unknown)}: no such benchmark; there are: {', '.join(known) or 'none'}")
        return 2
    wanted = {row for row in known if not names or any(matches(row, name) for name in names)}
    if only_list:
        for declared in (row for b in benchmarks for row in b.rows if row.name in wanted):
            click.echo(f"{declared.name:<28} {declared.unit:<11} {declared.about}")
        return 0
    if not wanted:
        _say("nothing to measure: there are no benchmarks")
        return 1
    machine = this_machine()
    rows: list[Row] = []
    failed = [b.name for b in benchmarks if not _run_one(b, wanted, machine, rows, as_json=output == "json")]
    if output == "table" and rows:
        click.echo(f"{machine}\n\n{table(rows)}")
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _run_one(benchmark: Benchmark, wanted: set[str], machine: Machine, rows: list[Row], *, as_json: bool) -> bool:
    """Run a benchmark if one of its rows is wanted, and say whether all went well.

    A row is printed as soon as it is known, so a failure later costs only what follows.
    """
    declared = {row.name: row for row in benchmark.rows}
    if wanted.isdisjoint(declared):
        return True
    _say(f"{benchmark.name}: starting")
    missing = set(declared)
    try:
        measurements: Iterable[Measured] = benchmark.measure(lambda text: _say(f"{benchmark.name}: {text}"))
        for measured in measurements:
            if measured.name not in missing:
                raise ValueError(f"row {measured.name}: not declared by {benchmark.name}, or given twice")
            missing.remove(measured.name)
            if measured.name not in wanted:
                continue
            row = Row.of(measured, declared[measured.name], machine)
            rows.append(row)
            if as_json:
                click.echo(row.to_json())
    except PodlaneError as error:
        _say(f"{benchmark.name}: {error}")
        return False
    except Exception:
        _say(f"{benchmark.name}: failed\n{traceback.format_exc()}")
        return False
    if missing:
        _say(f"{benchmark.name}: gave no {', '.join(sorted(missing))}")
    return not missing


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


if __name__ == "__main__":
    main(prog_name="bench")
