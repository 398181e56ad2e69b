from __future__ import annotations

import pytest

from podlane.cli.options import parse_duration
from podlane.runtime.text import TableWriter, age, human_duration, pairs, table

pytestmark = pytest.mark.unit

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400


# the rows of apimachinery's duration_test.go, and the edges between them
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (0.9, "0s"),
        (1, "1s"),
        (70, "70s"),
        (119, "119s"),
        (120, "2m"),
        (190, "3m10s"),
        (10 * MINUTE - 1, "9m59s"),
        (10 * MINUTE, "10m"),
        (70 * MINUTE, "70m"),
        (3 * HOUR - 1, "179m"),
        (3 * HOUR, "3h"),
        (3 * HOUR + 5 * MINUTE, "3h5m"),
        (8 * HOUR - 1, "7h59m"),
        (8 * HOUR, "8h"),
        (47 * HOUR, "47h"),
        (2 * DAY, "2d"),
        (2 * DAY + 5 * HOUR, "2d5h"),
        (8 * DAY - 1, "7d23h"),
        (8 * DAY, "8d"),
        (2 * YEAR - 1, "729d"),
        (2 * YEAR, "2y"),
        (3 * YEAR + 20 * DAY, "3y20d"),
        (8 * YEAR, "8y"),
        (9 * YEAR + 20 * DAY, "9y"),
    ],
)
def test_durations_are_kubectls(seconds, text):
    assert human_duration(seconds) == text


def test_an_age_that_was_never_set():
    assert age(None, None) == "<unknown>"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("100ms", 0.1)]
)
def test_go_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5x", "m5", "-5s", "5 m", "1h30"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


def test_columns_are_six_wide_with_three_blanks():
    assert table([["A", "B"], ["a", "bb"]]) == "A     B\na     bb"
    assert table([["NAME", "X"], ["web-12345", "1"]]) == "NAME        X\nweb-12345   1"


def test_a_later_batch_keeps_and_widens_columns():
    writer = TableWriter()
    assert writer.render([["NAME", "AGE"], ["web-abc", "1s"]]) == ["NAME      AGE", "web-abc   1s"]
    assert writer.render([["w", "2s"]]) == ["w         2s"]
    assert writer.render([["web-abcde", "2s"]]) == ["web-abcde   2s"]


def test_a_cell_never_breaks_a_line():
    assert table([["two\nlines", "x"]]) == "two lines   x"


def test_pairs():
    assert pairs({"b": "2", "a": "1"}) == "a=1,b=2"
    assert pairs({}) == "<none>"
