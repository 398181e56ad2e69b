"""How the tests are spread over workers: what stays together, what begins, and that a worker loads our plugins."""

from __future__ import annotations

import pytest

from tests.parallel import piece, turn

pytestmark = pytest.mark.unit

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/unit/test_a.py::test_x[1-::-b]", "tests/unit/test_a.py"),
        ("tests/contract/test_a.py::Case::test_x", "tests/contract/test_a.py"),
        ("tests/kernel/test_a.py::test_x[a::b]", "tests/kernel/test_a.py::test_x[a::b]"),
        ("tests/e2e/test_a.py::test_x", "tests/e2e/"),
    ],
)
def test_what_shares_something_stays_together(nodeid: str, expected: str) -> None:
    assert piece(nodeid) == expected


def test_the_longest_pieces_begin_and_the_shortest_fill_the_gaps() -> None:
    long = "tests/kernel/test_s.py::test_a_minute_and_a_half_of_upgrade_kill_and_outage_loses_no_packet"
    pieces = ["tests/unit/test_a.py", "tests/contract/test_a.py", "tests/kernel/test_a.py::test_x", long, "tests/e2e/"]
    assert sorted(pieces, key=turn) == pieces[::-1]


SOME = """
    import os, pathlib, pytest

    @pytest.mark.parametrize("number", range(8))
    def test_some(number):
        with pathlib.Path(__file__).with_suffix(".workers").open("a") as file:
            print(os.environ["PYTEST_XDIST_WORKER"], file=file)
        if number == 5:
            pytest.skip("no such kernel")
"""


def test_files_are_kept_whole_and_no_worker_may_skip(pytester: pytest.Pytester) -> None:
    files = ["tests/unit/test_a", "tests/contract/test_b", "tests/contract/test_c"]
    for file in files:
        (pytester.path / file).parent.mkdir(parents=True, exist_ok=True)
    pytester.makepyfile(**dict.fromkeys(files, SOME))
    result = pytester.runpytest_inprocess("-p", "tests.parallel", "-p", "tests.no_skips", "-n2")
    result.assert_outcomes(passed=21, failed=2, skipped=1)
    told = (
        "tests/contract/test_?.py::test_some[[]5] (call): skipped, which is not allowed here: Skipped: no such kernel"
    )
    result.stdout.fnmatch_lines([f"*{told}", f"*{told}", "*= FAILURES =*"])
    workers = [set((pytester.path / f"{file}.workers").read_text().split()) for file in files]
    assert [len(each) for each in workers] == [1, 1, 1]
    assert set().union(*workers) == {"gw0", "gw1"}
