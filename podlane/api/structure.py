"""Plain values from a manifest to typed objects, with every error named.

Owns: the walk along the types of types.py. Invariants: all errors of a
document are found in one pass; where something is wrong, a stand-in of the
right type takes its place, so that the rules (validation.py) can be asked
about the rest, and what they say about a stand-in is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from podlane.api import types
from podlane.api.codec import without_nulls
from podlane.api.documents import Place
from podlane.api.fields import Errors, Range, expected_integer, join, range_of
from podlane.api.unsupported import DROPPED, SERVER_SET, UNSUPPORTED, VALUES, default_of
from podlane.errors import FieldError

UNSUPPORTED_TEXT = "known to Kubernetes but not supported by Podlane yet"

_QUANTITIES = {
    (types.ResourceRequirements, "requests"),
    (types.ResourceRequirements, "limits"),
    (types.ResourceQuotaSpec, "hard"),
    (types.EmptyDirVolumeSource, "sizeLimit"),
    (types.ResourceFieldSelector, "divisor"),
}
"""Quantities and maps of them, where Kubernetes also takes numbers: `cpu: 1`."""

_ABSENT = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a value is: as an error says it, and as the document knows it."""

    path: str
    place: Place

    def field(self, name: str) -> _Spot:
        return _Spot(join(self.path, name), (*self.place, name))

    def key(self, name: str) -> _Spot:
        return _Spot(f"{self.path}[{name}]", (*self.place, name))

    def item(self, index: int) -> _Spot:
        return _Spot(f"{self.path}[{index}]", (*self.place, index))


class Reader:
    """Reads one object; `spelled` has the text of scalars that YAML took for no strings."""

    def __init__(self, spelled: dict[Place, str], root: Place = ()) -> None:
        self.spelled = spelled
        self.root = root
        self.errors = Errors()

    def read(self, cls: type[types.Object], value: dict[str, Any]) -> tuple[types.Object, dict[str, Any]]:
        """The object, and the manifest without what is dropped (status, what the server sets).

        With errors the object contains stand-ins and must not be stored.
        """
        said = {key: inner for key, inner in value.items() if key != "status"}
        clean = self._struct(cls, said, _Spot("", self.root))
        return msgspec.convert(without_nulls(clean), cls), _manifest_of(clean)

    def relevant(self, found: list[FieldError]) -> list[FieldError]:
        """Those of the rules' errors that do not come from a stand-in."""
        broken = [error.field for error in self.errors.found]
        return [error for error in found if not any(_related(error.field, path) for path in broken)]

    # each method returns what msgspec can convert, or _ABSENT after an error

    def _struct(self, cls: type[types.Struct], value: Any, spot: _Spot) -> Any:
        if not isinstance(value, dict):
            self._expected("a map", value, spot)
            return _ABSENT
        known = _fields_of(cls)
        result: dict[str, Any] = {}
        for key, inner in value.items():
            if key not in known:
                self._unknown(cls, key, inner, spot.field(key))
            elif cls is types.ObjectMeta and key in SERVER_SET:
                continue
            elif inner is None:
                result[key] = None
            else:
                read = self._value(known[key], inner, spot.field(key))
                if read is not _ABSENT:
                    result[key] = read
        for key, field in known.items():
            if field.required and result.get(key) is None:
                if value.get(key) is None:
                    self.errors.add(spot.field(key).path, "required")
                result[key] = _stand_in(field.type)
        return result

    def _value(self, field: _Field, value: Any, spot: _Spot) -> Any:
        read: Callable[[_Field, Any, _Spot], Any] = getattr(self, f"_{field.form}")
        return read(field, value, spot)

    def _object(self, field: _Field, value: Any, spot: _Spot) -> Any:
        return self._struct(field.type, value, spot)

    def _string(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if isinstance(value, str):
            return value
        if field.quantities and isinstance(value, int | float) and not isinstance(value, bool):
            return self._text(value, spot)
        self._expected("a string", value, spot)
        return self._text(value, spot) if isinstance(value, bool | int | float) else _ABSENT

    def _boolean(self, field: _Field, value: Any, spot: _Spot) -> Any:
        del field
        if isinstance(value, bool):
            return value
        self._expected("true or false", value, spot)
        return _ABSENT

    def _integer(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return self._within_64_bits(value, spot)
        self._expected(expected_integer(field.range), value, spot)
        return max(field.range[0], 0)

    def _integer_or_name(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return self._within_64_bits(value, spot)
        self._expected(f"{expected_integer(field.range)} or a name", value, spot)
        return field.range[0]

    def _within_64_bits(self, value: int, spot: _Spot) -> int:
        if -(2**63) <= value < 2**63:
            return value
        self.errors.add(spot.path, f"expected an integer of at most 64 bits, got {value}")
        return 0

    def _time(self, field: _Field, value: Any, spot: _Spot) -> Any:
        del field
        if isinstance(value, str):
            try:
                if msgspec.convert(value, datetime).tzinfo is not None:
                    return value
            except msgspec.ValidationError:
                pass  # the same error as for a time without a zone
        self._expected('a time such as "2026-01-02T03:04:05Z"', value, spot)
        return _ABSENT

    def _choice(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if value == "":
            return _ABSENT
        choices = [choice for choice in get_args(field.type) if choice]
        if value in choices:
            return value
        listed = " or ".join(_quoted(choice) for choice in choices)
        if isinstance(value, str) and value in VALUES.get((field.owner, field.name), ()):
            self.errors.add(spot.path, f'"{value}" is {UNSUPPORTED_TEXT} (supported: {listed})')
        else:
            self._expected(listed, value, spot)
        return _ABSENT

    def _list(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if not isinstance(value, list):
            self._expected("a list", value, spot)
            return _ABSENT
        item = field.item
        dropped = DROPPED.get((field.owner, field.name))
        result = [
            self._value(item, inner, spot.item(index))
            for index, inner in enumerate(value)
            if dropped is None or not (isinstance(inner, dict) and dropped(inner))
        ]
        # the place in the list is kept, or later errors would name the wrong index
        return [_stand_in(item.type) if read is _ABSENT else read for read in result]

    def _map(self, field: _Field, value: Any, spot: _Spot) -> Any:
        if not isinstance(value, dict):
            self._expected("a map", value, spot)
            return _ABSENT
        result: dict[str, Any] = {}
        for key, inner in value.items():
            if inner is None:
                result[key] = None
            elif field.owner is types.Secret and not isinstance(inner, str):
                self.errors.add(spot.key(key).path, "expected a string; quote it")  # and not what it is
            else:
                read = self._string(field, inner, spot.key(key))
                if read is not _ABSENT:
                    result[key] = read
        return result

    # --- errors ----------------------------------------------------------------------

    def _unknown(self, cls: type[types.Struct], key: str, value: Any, spot: _Spot) -> None:
        unsupported = UNSUPPORTED.get(cls, {})
        accepts = unsupported.get(key)
        if accepts is None:
            self.errors.add(spot.path, f"unknown field{did_you_mean(key, [*_fields_of(cls), *unsupported])}")
        elif value is not None and not accepts(value):
            default = default_of(accepts)
            only = f" (only its default {_quoted(default)} is)" if default is not None else ""
            self.errors.add(spot.path, f"{UNSUPPORTED_TEXT}{only}")

    def _expected(self, wanted: str, value: Any, spot: _Spot) -> None:
        if isinstance(value, str):
            got = _quoted(value)
        elif isinstance(value, dict | list):
            got = "a map" if isinstance(value, dict) else "a list"
        else:
            got = self._text(value, spot)
            if wanted == "a string" and value is not None:
                if isinstance(value, bool) and got.lower() not in {"true", "false"}:
                    got += f", which YAML reads as {_quoted(value)}"
                got += "; quote it"
        self.errors.add(spot.path, f"expected {wanted}, got {got}")

    def _text(self, value: Any, spot: _Spot) -> str:
        return self.spelled.get(spot.place) or json.dumps(value)


def did_you_mean(word: str, words: list[str]) -> str:
    """`; did you mean "Pod"?`, or nothing."""
    import difflib  # only for errors

    same = [candidate for candidate in words if candidate.lower() == word.lower()]
    similar = same or difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f'; did you mean "{similar[0]}"?' if similar else ""


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f'{text[:77]}…"'


def _related(one: str, other: str) -> bool:
    """Whether one path is the other or lies below it."""
    short, long = sorted((one, other), key=len)
    return not short or long == short or (long.startswith(short) and long[len(short)] in ".[")


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a type, as the walk needs it. `form` names the method that reads it."""

    owner: type[types.Struct]
    name: str
    type: Any
    form: str
    range: Range
    required: bool = False
    quantities: bool = False

    @property
    def item(self) -> _Field:
        """What a list's elements are."""
        return _field(self.owner, self.name, get_args(self.type)[0], self.range)


_FORMS: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    datetime: "time",
    tuple: "list",
    dict: "map",
    Literal: "choice",
}


@cache
def _field(owner: type[types.Struct], name: str, wanted: Any, allowed: Range, required: bool = False) -> _Field:
    if get_origin(wanted) in {Union, UnionType}:
        members = [member for member in get_args(wanted) if member is not NoneType]
        if len(members) > 1:
            return _Field(owner, name, members[0], "integer_or_name", allowed, required)
        wanted = members[0]
    if get_origin(wanted) is Annotated:
        wanted = get_args(wanted)[0]
    form = _FORMS.get(get_origin(wanted) or wanted, "object")
    return _Field(owner, name, wanted, form, allowed, required, (owner, name) in _QUANTITIES)


@cache
def _fields_of(cls: type[types.Struct]) -> dict[str, _Field]:
    return {
        field.encode_name: _field(
            cls, field.encode_name, field.type, range_of(cls, field.name), required=field.required
        )
        for field in msgspec.structs.fields(cls)
    }


def _stand_in(wanted: Any) -> Any:
    """Some value of a type, in place of one that is missing or wrong."""
    if wanted in {int, str, bool}:
        return wanted()
    match get_origin(wanted):
        case None:
            return {name: _stand_in(field.type) for name, field in _fields_of(wanted).items() if field.required}
        case origin if origin is tuple:
            return []
        case origin if origin is Literal:
            return get_args(wanted)[0]
        case _:
            return _stand_in(get_args(wanted)[0])


def _manifest_of(clean: dict[str, Any]) -> dict[str, Any]:
    """A null says "remove this" to apply's merge, which can do so in maps and in named containers only."""

    def keep(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: keep(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [
                keep(item, "") if key in {"containers", "initContainers"} else without_nulls(item) for item in value
            ]
        return value

    result: dict[str, Any] = keep(clean, "")
    return result
