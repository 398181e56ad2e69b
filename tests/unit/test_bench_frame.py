"""The frame of the benchmarks: what is chosen, what is printed, what a failure costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.__main__ import BenchmarkFailed, discover, main, measure_apart, measure_here, run
from bench.machine import Machine, this_machine
from bench.rows import Benchmark, Declared, Measured, Progress, Row, human, percentile, table
from podlane.errors import PodlaneError

pytestmark = pytest.mark.unit

MACHINE = Machine("Fast CPU", 2, "6.1.0")


def pods(progress: Progress) -> Iterator[Measured]:
    progress("creating 30 pods")
    yield Measured.median("pods.start_p50", [3.0, 1.0, 2.0])
    yield Measured.median("pods.start_p99", [2.5], peer="other", peer_samples=[10.0, 5.0])


PODS = Benchmark(
    "pods",
    (
        Declared("pods.start_p50", "seconds", "apply to ready, the median pod"),
        Declared("pods.start_p99", "seconds", "apply to ready, the slowest pod", aim=3.0),
    ),
    pods,
)


def single(name: str, outcome: Iterable[Measured] | Exception) -> Benchmark:
    def measure(progress: Progress) -> Iterator[Measured]:
        if isinstance(outcome, Exception):
            raise outcome
        yield from outcome

    return Benchmark(name, (Declared(name, "bytes", "memory"),), measure)


def test_json_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([PODS], [], output="json") == 0
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in out.splitlines())
    assert {k: v for k, v in first.items() if k != "machine"} == {
        "name": "pods.start_p50",
        "value": 2.0,
        "unit": "seconds",
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "aim": None,
        "runs": 3,
    }
    assert set(first["machine"]) == {"cpu", "cores", "kernel"}
    assert (second["peer"], second["peer_value"], second["ratio"], second["aim"]) == ("other", 7.5, 2.5 / 7.5, 3.0)
    assert err == "bench: pods: starting\nbench: pods: creating 30 pods\n"


@pytest.mark.parametrize(
    ("names", "given"),
    [
        ([], ["pods.start_p50", "pods.start_p99", "memory"]),
        (["pods"], ["pods.start_p50", "pods.start_p99"]),
        (["pods.start_p99"], ["pods.start_p99"]),
        (["memory", "pods.start_p50"], ["pods.start_p50", "memory"]),
    ],
)
def test_names_choose_rows(names: list[str], given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    memory = single("memory", [Measured("memory", 5e6, 1)])
    assert run([PODS, memory], names, output="json") == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == given


@pytest.mark.parametrize("name", ["pod", "pods.start", "nothing"])
def test_an_unknown_name_is_refused_before_anything_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([PODS], ["pods", name]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"bench: measure {name}: no such benchmark; there are: pods.start_p50, pods.start_p99\n"


def test_a_benchmark_that_is_not_wanted_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([PODS, single("boom", RuntimeError("must not run"))], ["pods"]) == 0
    assert "boom" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (PodlaneError("start lab: no room"), "bench: broken: start lab: no room\n"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x"),
        ([], "bench: broken: gave no broken\n"),
        ([Measured("other", 1.0, 1)], "row other: not declared by broken, or given twice"),
        ([Measured("broken", 1.0, 1)] * 2, "row broken: not declared by broken, or given twice"),
    ],
    ids=["refuses", "raises", "gives nothing", "gives another", "gives twice"],
)
def test_a_failure_does_not_stop_the_others(
    broken: Iterable[Measured] | Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([single("broken", broken), PODS], []) == 1
    out, err = capsys.readouterr()
    assert "pods.start_p99" in out
    assert message in err
    assert err.endswith("bench: failed: broken\n")


def test_several_benchmarks_are_measured_apart_and_one_alone_here(capsys: pytest.CaptureFixture[str]) -> None:
    apart: list[str] = []

    def measure(benchmark: Benchmark, names: Sequence[str]) -> Iterator[Row]:
        apart.append(benchmark.name)
        return measure_here(benchmark, names)

    both = (single("a", [Measured("a", 1.0, 1)]), single("b", [Measured("b", 2.0, 1)]))
    assert run(both, ["a"], output="json", measure=measure) == 0
    assert apart == []
    assert run(both, [], output="json", measure=measure) == 0
    assert apart == ["a", "b"]
    rows = [msgspec.json.decode(line, type=Row) for line in capsys.readouterr().out.splitlines()]
    assert [(r.name, r.value) for r in rows] == [("a", 1.0), ("a", 1.0), ("b", 2.0)]


def test_a_process_that_fails_is_a_failed_benchmark() -> None:
    with pytest.raises(BenchmarkFailed):
        list(measure_apart(single("nosuch", []), ["nosuch"]))


def test_without_benchmarks_there_is_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], []) == 1
    assert run([], [], only_list=True) == 0
    assert run([], ["pods"]) == 2
    assert capsys.readouterr().err.endswith("there are: none\n")


def test_the_command_lists_what_the_modules_here_declare() -> None:
    result = CliRunner().invoke(main, ["--list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [r.name for b in discover() for r in b.rows]
    assert CliRunner().invoke(main, ["-o", "xml"]).exit_code == 2


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row.of(measured, declared, MACHINE) for measured, declared in zip(pods(lambda _: None), PODS.rows, strict=True)
    ]
    assert table(rows).splitlines() == [
        "NAME             VALUE   AIM   PEER    PEER VALUE   RATIO   RUNS",
        "pods.start_p50   2 s     -     -       -            -       3",
        "pods.start_p99   2.5 s   3 s   other   7.5 s        0.33    1",
    ]
    assert run([PODS], []) == 0
    assert capsys.readouterr().out.startswith(f"{this_machine()}\n\nNAME")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00002, "seconds", "20 µs"),
        (0.1234, "seconds", "123 ms"),
        (12.34, "seconds", "12.3 s"),
        (125.4, "seconds", "125 s"),
        (0.0, "seconds", "0 µs"),
        (999, "bytes", "999 B"),
        (54_321_000, "bytes", "54.32 MB"),
        (2.5e9, "bytes", "2.5 GB"),
        (2.5e9, "bytes per second", "2.5 GB/s"),
        (0.0087, "share", "0.87 %"),
        (1234.5, "per second", "1,234/s"),
        (1.5, "per second", "1.5/s"),
        (30, "count", "30"),
    ],
)
def test_values_for_people(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text  # type: ignore[arg-type]


def test_percentiles_are_values_that_were_measured() -> None:
    samples = [float(n) for n in range(30, 0, -1)]
    assert percentile(samples, 50) == 15.0
    assert percentile(samples, 99) == 30.0
    assert percentile(samples, 100) == 30.0
    assert percentile([7.0], 1) == 7.0
    for bad in (([], 50.0), ([1.0], 0.0), ([1.0], 101.0)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(*bad)


def test_rows_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="finite value"):
        Measured("a", float("nan"), 1)
    with pytest.raises(ValueError, match="at least 1 run"):
        Measured("a", 1.0, 0)
    with pytest.raises(ValueError, match="a peer and its value come together"):
        Measured("a", 1.0, 1, peer="other")
    with pytest.raises(ValueError, match=r"row nodes\.x does not begin with its name"):
        Benchmark("pods", (Declared("nodes.x", "seconds", ""),), pods)


def test_the_machine_is_named(tmp_path: Path) -> None:
    (tmp_path / "intel").write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2GHz\n")
    (tmp_path / "arm").write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    assert this_machine(tmp_path / "intel").cpu == "Some CPU @ 2GHz"
    assert this_machine(tmp_path / "arm").cpu not in ("", "0xd0c")
    assert str(MACHINE) == "Fast CPU, 2 cores, Linux 6.1.0"
