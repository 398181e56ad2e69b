from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.quantity import bytes_, count, format_bytes, format_cpu, milli_cpu, parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", "0"),
        ("1", "1"),
        ("+1", "1"),
        ("-1", "-1"),
        (".5", "0.5"),
        ("5.", "5"),
        ("250m", "0.25"),
        ("100u", "0.0001"),
        ("1n", "0.000000001"),
        ("1k", "1000"),
        ("1M", "1000000"),
        ("1E", "1000000000000000000"),
        ("1E3", "1000"),
        ("1e3", "1000"),
        ("12e-1", "1.2"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("0.1n", "0.000000001"),
        ("-0.1n", "-0.000000001"),
        ("9E", "9000000000000000000"),
        ("8Ei", str(2**63 - 1)),
        ("-99E", str(-(2**63 - 1))),
        ("0e999", "0"),
        ("1e999", str(2**63 - 1)),
        ("1e-999", "0.000000001"),
    ],
)
def test_parse(text: str, want: str) -> None:
    assert parse(text) == Decimal(want)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1KB", "ki", "1ki", "1mi", "0x10", "1e", "1_000", "½", "٣", "--1", "1.2.3", "inf", "NaN"]
)
def test_what_is_no_quantity_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity") as caught:
        parse(text)
    assert f'"{text}"' in str(caught.value)


@pytest.mark.parametrize(
    ("convert", "text", "want"),
    [
        (milli_cpu, "1", 1000),
        (milli_cpu, "0.1", 100),
        (milli_cpu, "1u", 1),
        (milli_cpu, "1500m", 1500),
        (bytes_, "64Mi", 64 * 2**20),
        (bytes_, "1500m", 2),
        (count, "110", 110),
    ],
)
def test_whole_units_are_rounded_up(convert, text: str, want: int) -> None:
    assert convert(text) == want


@pytest.mark.parametrize(("milli", "want"), [(0, "0"), (1, "1m"), (1000, "1"), (1500, "1500m"), (64000, "64")])
def test_format_cpu(milli: int, want: str) -> None:
    assert format_cpu(milli) == want


@pytest.mark.parametrize(
    ("number", "want"), [(0, "0"), (1000, "1000"), (1024, "1Ki"), (1536, "1536"), (64 * 2**20, "64Mi"), (2**60, "1Ei")]
)
def test_format_bytes(number: int, want: str) -> None:
    assert format_bytes(number) == want


@given(st.integers(0, 2**62))
def test_what_is_formatted_reads_back_the_same(number: int) -> None:
    assert bytes_(format_bytes(number)) == number


@given(st.integers(0, 10**12))
def test_cpu_reads_back_the_same(milli: int) -> None:
    assert milli_cpu(format_cpu(milli)) == milli


@given(st.decimals(0, 10**6, places=6), st.sampled_from(["n", "u", "m", "", "k", "M", "Ki", "Mi"]))
def test_conversion_never_promises_less_than_was_asked(number: Decimal, suffix: str) -> None:
    text = f"{number:f}{suffix}"
    assert milli_cpu(text) >= parse(text) * 1000 > milli_cpu(text) - 1 or parse(text) == 0
