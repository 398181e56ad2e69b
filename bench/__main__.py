"""The command: choose benchmarks, run them, print their rows."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import click
import msgspec

import bench
from bench.machine import this_machine
from bench.rows import Benchmark, Row, matches, table
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

    `soak` instead of a NAME breaks a lab at random for some minutes: see soak --help.
    """
    sys.exit(run(discover(), names, output=output, only_list=list_, measure=measure_apart))


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


Measure = Callable[[Benchmark, Sequence[str]], Iterator[Row]]
"""Gives the named rows of a benchmark as they come. Raises BenchmarkFailed, after the rows there were."""


def run(
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    *,
    output: str = "table",
    only_list: bool = False,
    measure: Measure | None = None,
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
            click.echo(f"{declared.name:<28} {declared.unit:<16} {declared.about}")
        return 0
    if not wanted:
        _say("nothing to measure: there are no benchmarks")
        return 1
    rows: list[Row] = []
    failed: list[str] = []
    concerned = [(b, [row.name for row in b.rows if row.name in wanted]) for b in benchmarks]
    concerned = [(b, names) for b, names in concerned if names]
    # one alone may have this process to itself
    chosen = measure if measure and len(concerned) > 1 else measure_here
    for benchmark, its_rows in concerned:
        try:
            for row in chosen(benchmark, its_rows):
                rows.append(row)
                if output == "json":
                    click.echo(row.to_json())
        except BenchmarkFailed as error:
            _say(f"{benchmark.name}: {error}")
            failed.append(benchmark.name)
    if output == "table" and rows:
        click.echo(f"{rows[0].machine}\n\n{table(rows)}")
    if failed:
        _say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


class BenchmarkFailed(Exception):
    """A benchmark could not give all its rows; the message says why."""


def measure_here(benchmark: Benchmark, names: Sequence[str]) -> Iterator[Row]:
    """Measure in this process. A row is given as soon as it is known, so a failure later costs only what follows."""
    machine = this_machine()
    declared = {row.name: row for row in benchmark.rows}
    missing = set(declared)
    _say(f"{benchmark.name}: starting")
    try:
        for measured in benchmark.measure(lambda text: _say(f"{benchmark.name}: {text}")):
            if measured.name not in missing:
                raise ValueError(f"row {measured.name}: not declared by {benchmark.name}, or given twice")
            missing.remove(measured.name)
            if measured.name in names:
                yield Row.of(measured, declared[measured.name], machine)
    except PodlaneError as error:
        raise BenchmarkFailed(str(error)) from error
    except Exception as error:
        raise BenchmarkFailed(f"failed\n{traceback.format_exc()}") from error
    if missing:
        raise BenchmarkFailed(f"gave no {', '.join(sorted(missing))}")


def measure_apart(_: Benchmark, names: Sequence[str]) -> Iterator[Row]:
    """Measure in a process of its own: no benchmark inherits another's memory, threads or namespace."""
    argv = [sys.executable, "-m", "bench", *names, "-o", "json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield msgspec.json.decode(line, type=Row)
    if child.returncode:
        raise BenchmarkFailed("see above")


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C does: by way of whatever a benchmark has to clean up
        signal.signal(number, _leave)
    if sys.argv[1:2] == ["soak"]:  # no measurement: it has options of its own
        from bench.soak import main as soak

        soak(sys.argv[2:], prog_name="bench soak")
    main(prog_name="bench")
