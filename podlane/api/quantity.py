"""Kubernetes resource quantities: "250m" CPUs, "64Mi" bytes.

Owns: the text form and its arithmetic value. Invariants: a value is exact (no
floats); conversions to whole units round away from zero, so that nothing is
ever promised less than it asked for. Source: apimachinery's
pkg/api/resource/quantity.go, whose limits (2^63-1, nano precision) are kept.
"""

from __future__ import annotations

import re
from decimal import ROUND_UP, Context, Decimal

_FORM = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?\d{1,3}))?",
    re.ASCII,
)
_SCALE = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{suffix: Decimal(10) ** (3 * (power + 1)) for power, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Decimal(1024 ** (power + 1)) for power, suffix in enumerate("KMGTPE")},
}
_LIMIT = Decimal(2**63 - 1)
_NANO = Decimal("1e-9")
# enough digits that no product or rounding within the limits is inexact
_CONTEXT = Context(prec=400, rounding=ROUND_UP)


def parse(text: str) -> Decimal:
    """The value in base units (CPUs, bytes). Raises ValueError when it is no quantity.

    Finer than a nano-unit is rounded away from zero, beyond ±(2^63-1) is
    capped, as Kubernetes does.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f'expected a quantity such as "250m", "1.5" or "64Mi", got "{text}"')
    number = Decimal(match["number"])
    if match["exponent"] is not None:
        scale = Decimal(10) ** int(match["exponent"]) if number else Decimal(1)
    else:
        scale = _SCALE[match["suffix"] or ""]
    value = _CONTEXT.multiply(number, scale)
    if abs(value) >= _LIMIT:
        return _LIMIT.copy_sign(value)
    return value.quantize(_NANO, context=_CONTEXT)


def milli_cpu(text: str) -> int:
    """CPU time in thousandths of a CPU, rounded up. Raises ValueError."""
    return _whole(parse(text) * 1000)


def bytes_(text: str) -> int:
    """Memory or storage in bytes, rounded up. Raises ValueError."""
    return _whole(parse(text))


def count(text: str) -> int:
    """A number of things (the `pods` resource), rounded up. Raises ValueError."""
    return _whole(parse(text))


def format_cpu(milli: int) -> str:
    """`1500` → "1500m", `2000` → "2"."""
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def format_bytes(number: int) -> str:
    """The largest binary unit that is exact: `67108864` → "64Mi", `1000` → "1000"."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        unit = int(_SCALE[suffix])
        if number and number % unit == 0:
            return f"{number // unit}{suffix}"
    return str(number)


def _whole(value: Decimal) -> int:
    return int(value.to_integral_value(rounding=ROUND_UP))
