"""YAML and JSON text to plain values, strictly.

Owns: what counts as a well-formed manifest file: UTF-8, no duplicate keys, no
keys that are not strings, no tags of foreign types, no alias that contains
itself. Invariant: never raises for bad text; what is wrong is in
`Document.problems` with its line. Scalars that YAML makes into something else
than a string keep the text they were written as, so that an error can quote
it (`yes`, not `true`). Differences from PyYAML are where kubectl's reader
differs: no timestamps, no numbers in base 60, `1e3` is a number.
Source: YAML 1.1 as go-yaml v2 reads it, RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Keys and indexes from the document's root."""

MAX_VALUES = 2_000_000
"""Values in one document after aliases are expanded; more is a mistake or an attack."""

MAX_DEPTH = 200
"""Levels of nesting; libyaml's composer recurses in C and would overflow the stack instead of raising."""

_TAG = "tag:yaml.org,2002:"
_SPACE = re.compile(r"\s*")
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Document:
    """One document. `value` is None and `problems` filled when it cannot be read at all."""

    value: Any = None
    spelled: dict[Place, str] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)


def read(text: str, *, is_json: bool) -> list[Document]:
    """All documents of a file that are not empty. JSON may also be in a file that is not called so."""
    if is_json:
        return _read_json(text)
    if text.lstrip().startswith("{"):
        documents = _read_json(text)
        if not any(document.problems for document in documents):
            return documents
    return _read_yaml(text)


def _read_json(text: str) -> list[Document]:
    documents: list[Document] = []
    position = _after_space(text, 0)
    while position < len(text):
        document = Document()
        try:
            document.value, position = _JSONReader(document).decoder.raw_decode(text, position)
            _check_characters(document.value)
        except json.JSONDecodeError as error:
            document.problems = [((), f"line {error.lineno}: {_lower(error.msg)}")]
        except RecursionError:
            document.problems = [((), "nested too deeply to be read")]
        except ValueError as error:
            document = Document(problems=[((), str(error))])
        documents.append(document)
        if document.value is None and document.problems:
            break
        position = _after_space(text, position)
    return [d for d in documents if d.value is not None or d.problems]


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("expected whole characters, got half a surrogate pair") from None


class _JSONReader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                self.document.problems.append(((), f'duplicate key "{key}"'))
            result[key] = value
        return result

    def _constant(self, name: str) -> Any:
        raise ValueError(f"expected JSON, got {name}")


class _Loader(_Base):  # type: ignore[misc]
    """PyYAML's safe loader with go-yaml's idea of plain scalars."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


_Loader.add_implicit_resolver(
    f"{_TAG}bool",
    re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"),
    list("yYnNtTfFoO"),
)
_Loader.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<$"), ["<"])
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])


def _read_yaml(text: str) -> list[Document]:
    documents: list[Document] = []
    try:
        for node in _nodes(text):
            document = Document()
            document.value = _Constructor(document).build(node, ())
            if document.value is not None or document.problems:
                documents.append(document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        cause = ", ".join(part for part in (error.context, error.problem) if part)
        documents.append(Document(problems=[((), f"{where}{_lower(cause)}")]))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        documents.append(Document(problems=[((), f"line {line}: {_lower(str(error.reason))}")]))
    except _Refused as refusal:
        documents.append(Document(problems=[((), str(refusal))]))
    except RecursionError:
        documents.append(Document(problems=[((), "nested too deeply to be read")]))
    return documents


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark is not None else 0
                raise _Refused(f"line {line}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _may_be_deep(text: str) -> bool:
    """A cheap upper bound of the depth: brackets, and per column of a line a map and a list in it."""
    return text.count("[") + text.count("{") + 2 * max(map(len, text.splitlines()), default=0) > MAX_DEPTH


def _nodes(text: str) -> Iterator[yaml.Node]:
    if _may_be_deep(text):
        _check_depth(text)
    loader = _Loader(text)
    try:
        while loader.check_node():
            yield loader.get_node()
    finally:
        loader.dispose()


class _Refused(Exception):
    """The document cannot be read at all."""


class _Constructor:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.values = 0
        self.open: set[int] = set()

    def problem(self, place: Place, node: yaml.Node, cause: str) -> None:
        self.document.problems.append((place, f"line {node.start_mark.line + 1}: {cause}"))

    def build(self, node: yaml.Node, place: Place) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _Refused(f"expected at most {MAX_VALUES} values after aliases are expanded")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        if id(node) in self.open:
            raise _Refused(f"line {node.start_mark.line + 1}: an alias contains itself")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.build(item, (*place, index)) for index, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return self.mapping(node, place)
        finally:
            self.open.discard(id(node))
        self.problem(place, node, f"the tag {node.tag.removeprefix(_TAG)} has no meaning here")
        return None

    def scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "merge" | "value":
                return text
            case "null":
                return None
            case "bool":
                value: Hashable = text.lower() in {"true", "yes", "on"}
            case "int":
                value = _integer(text)
            case "float":
                value = _float(text)
            case tag:
                self.problem(place, node, f"the tag {tag} has no meaning here")
                return None
        if value is None:
            self.problem(place, node, f'expected a number, got "{text}"')
            return None
        self.document.spelled[place] = text
        return value

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = {**self.merge(value_node, place), **merged}
                continue
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                got = f"{key}; quote it" if isinstance(key, str) else f"a {key_node.id}"
                self.problem(place, key_node, f"expected a string as key, got {got}")
                continue
            line = key_node.start_mark.line + 1
            if key in lines:
                self.problem(place, key_node, f'duplicate key "{key}", also in line {lines[key]}')
                continue
            lines[key] = line
            result[key] = self.build(value_node, (*place, key))
        return {**merged, **result}

    def merge(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        """The value of `<<`: a map, or a list of maps of which the earlier ones win."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for source in sources:
            value = self.build(source, place)
            if isinstance(value, dict):
                result = {**value, **result}
            else:
                self.problem(place, source, "expected a map, or a list of maps, to merge")
        return result


def _integer(text: str) -> int | None:
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    try:
        if digits.startswith(("0b", "0x", "0o")):
            return sign * int(digits, 0)
        return sign * int(digits, 8 if len(digits) > 1 and digits[0] == "0" else 10)
    except ValueError:
        return None


def _float(text: str) -> float | None:
    # ".inf" and ".nan" have no JSON form, so no field can hold them
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _lower(cause: str) -> str:
    return cause[:1].lower() + cause[1:]
