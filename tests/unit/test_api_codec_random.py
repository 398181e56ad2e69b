"""Any object of any kind, made from its type alone, reads back the same from the store and from what is printed."""

import json
from datetime import UTC, datetime
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api import types
from podlane.api.codec import decode, encode, to_builtins

pytestmark = pytest.mark.unit

_FEW = 3
"""Fields of a struct that are given a value of their own, so that an object stays small."""

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    str: st.text("abz09-./ \n\u00e4", max_size=6),
    int: st.integers(-3, 2**40),
    bool: st.booleans(),
    datetime: st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
}


@cache
def values(wanted: Any) -> st.SearchStrategy[Any]:
    if wanted in SCALARS:
        return SCALARS[wanted]
    origin, args = get_origin(wanted), get_args(wanted)
    if origin is None:
        return structs(wanted)
    if origin is Annotated:
        return values(args[0])
    if origin is Literal:
        return st.sampled_from(args)
    if origin in {Union, UnionType}:
        return st.one_of([values(member) for member in args])
    few = st.lists(values(args[0]), max_size=2)
    return few.map(tuple) if origin is tuple else st.dictionaries(values(str), values(str), max_size=2)


@st.composite
def structs(draw: st.DrawFn, cls: type[types.Struct]) -> types.Struct:
    written = {"kind", "api_version"} if issubclass(cls, types.Object) else set()
    fields = {field.name: field for field in msgspec.structs.fields(cls) if field.name not in written}
    required = [name for name, field in fields.items() if field.required]
    optional = [name for name, field in fields.items() if not field.required]
    chosen = draw(st.lists(st.sampled_from(optional), max_size=_FEW, unique=True)) if optional else []
    return cls(**{name: draw(values(fields[name].type)) for name in (*required, *chosen)})


def stored(obj: types.Object) -> types.Object:
    cls = type(obj)
    metadata = msgspec.structs.replace(obj.metadata, resource_version="")
    return msgspec.structs.replace(obj, kind=cls.KIND, api_version=cls.API_VERSION, metadata=metadata)


@pytest.mark.parametrize("cls", [pytest.param(cls, id=kind) for kind, cls in types.KINDS.items()])
def test_what_is_written_reads_back_the_same(cls: type[types.Object]) -> None:
    @given(structs(cls), st.booleans())
    def check(obj: Any, defaults: bool) -> None:
        read = decode(cls, encode(obj))
        assert read == stored(obj)
        assert encode(read) == encode(obj)
        printed = json.loads(json.dumps(to_builtins(read, defaults=defaults)))
        assert msgspec.convert(printed, cls) == read

    check()
