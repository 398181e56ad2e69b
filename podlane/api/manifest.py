"""Manifests: files, directories and standard input to objects ready to be stored.

Owns: where manifests come from and how their errors are reported. Invariant:
all or nothing; every error of every document of every file is in the one
exception, each as `web.yaml#2 ReplicationController/web: spec.replicas:
expected an integer ≥ 0, got "four"` (the number where a file has several
documents). Objects come back with defaults applied and rules checked; their
status and what the server sets are dropped. Source: kubectl's -f.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from podlane.api import types, unsupported
from podlane.api.defaults import DEFAULT_NAMESPACE, apply_defaults
from podlane.api.documents import Document, Place, read
from podlane.api.structure import UNSUPPORTED_TEXT, Reader, did_you_mean
from podlane.api.validation import validate
from podlane.errors import FieldError, Invalid

SUFFIXES = (".json", ".yaml", ".yml")


class Manifest(msgspec.Struct, frozen=True):
    """One object of a manifest.

    `source` is the file and document (`web.yaml#2`). `raw` is what the
    manifest says in plain values: without status, what the server sets and
    fields Podlane leaves to their defaults, but with the nulls that ask for a
    field to be removed.
    """

    obj: types.Object
    source: str
    raw: dict[str, Any]


class InvalidManifest(Invalid):
    """Something is wrong with at least one document; `errors` has every error of all files."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("", errors)


def load(
    sources: Sequence[str | Path], stdin: IO[str] | IO[bytes] | None = None, *, namespace: str = DEFAULT_NAMESPACE
) -> list[Manifest]:
    """Read every source (a file, a directory, or "-" for `stdin`), in order.

    A directory stands for its *.yaml, *.yml and *.json files by name, those of
    its directories not included. Objects that name no namespace get
    `namespace`. Raises InvalidManifest.
    """
    loader = _Loader(namespace)
    for source in sources:
        for name, data in loader.texts(source, stdin):
            loader.file(name, data)
    if not loader.errors and not loader.manifests:
        names = ", ".join("stdin" if str(source) == "-" else str(source) for source in sources)
        loader.errors.append(FieldError(names, "expected at least one object, got none"))
    if loader.errors:
        raise InvalidManifest(loader.errors)
    return loader.manifests


class _Loader:
    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.manifests: list[Manifest] = []
        self.errors: list[FieldError] = []

    def texts(self, source: str | Path, stdin: IO[str] | IO[bytes] | None) -> Iterator[tuple[str, bytes | str]]:
        """Every file of a source with its content."""
        if str(source) == "-":
            if stdin is None:
                self.errors.append(FieldError("stdin", "expected manifests, got no input"))
            else:
                # the bytes below a text stream: its encoding is the terminal's, a manifest's is UTF-8
                yield "stdin", getattr(stdin, "buffer", stdin).read()
            return
        path = Path(source)
        try:
            if not path.is_dir():
                yield str(source), path.read_bytes()
                return
            files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
        except OSError as error:
            self.errors.append(FieldError(str(source), f"read: {error.strerror}"))
            return
        if not files:
            self.errors.append(FieldError(str(source), "expected *.yaml, *.yml or *.json files in it, got none"))
        for file in files:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                self.errors.append(FieldError(str(file), f"read: {error.strerror}"))

    def file(self, name: str, data: bytes | str) -> None:
        try:
            text = data if isinstance(data, str) else data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1 if isinstance(data, bytes) else 1
            self.errors.append(FieldError(name, f"line {line}: expected UTF-8"))
            return
        documents = read(text, is_json=name.endswith(".json"))
        for number, document in enumerate(documents, start=1):
            where = f"{name}#{number}" if len(documents) > 1 else name
            if document.value is None:
                # unreadable: the line says where, and the documents after it are not known
                self.errors.extend(FieldError(name, message) for _, message in document.problems)
                continue
            self.document(where, document)

    def document(self, where: str, document: Document) -> None:
        label = _label(document.value)
        for place, message in document.problems:
            self.report(where, label, [FieldError(_path(place), message)])
        value = document.value
        kind = value.get("kind") if isinstance(value, Mapping) else None
        item_kind = kind.removesuffix("List") if isinstance(kind, str) and kind.endswith("List") else None
        if item_kind is None or (item_kind and item_kind not in types.KINDS):
            self.object(where, document, value, ())
            return
        items = value.get("items")
        if not isinstance(items, list):
            self.report(where, str(kind), [FieldError("items", "expected a list of objects")])
            return
        for index, item in enumerate(items):
            if isinstance(item, Mapping) and item_kind:
                # in a PodList the items need not say what they are
                item = {"kind": item_kind, "apiVersion": types.KINDS[item_kind].API_VERSION, **item}  # noqa: PLW2901
            self.object(f"{where} items[{index}]", document, item, ("items", index))

    def object(self, where: str, document: Document, value: Any, root: Place) -> None:
        label = _label(value)
        if not isinstance(value, dict):
            self.report(where, "", [FieldError("", f"expected an object with a kind, got {_shape(value)}")])
            return
        cls, errors = _class_of(value)
        if cls is None:
            self.report(where, label, errors)
            return
        reader = Reader(document.spelled, root)
        obj, raw = reader.read(cls, value)
        obj = apply_defaults(obj, namespace=self.namespace)
        errors += reader.errors.found
        errors += reader.relevant(validate(obj))
        self.report(where, label, errors)
        if not errors:
            self.manifests.append(Manifest(obj, where, raw))

    def report(self, where: str, label: str, errors: list[FieldError]) -> None:
        prefix = f"{where} {label}" if label else where
        for error in errors:
            self.errors.append(FieldError(f"{prefix}: {error.field}" if error.field else prefix, error.message))


def _class_of(value: Mapping[str, Any]) -> tuple[type[types.Object] | None, list[FieldError]]:
    """The type that kind and apiVersion name; with a wrong apiVersion both it and an error."""
    kind, version = value.get("kind"), value.get("apiVersion")
    supported = f"supported: {', '.join(sorted(types.KINDS))}"
    if not isinstance(kind, str) or not kind:
        got = "required" if kind is None or kind == "" else f"expected a string, got {_shape(kind)}"
        return None, [FieldError("kind", f"{got} ({supported})")]
    cls = types.KINDS.get(kind)
    if cls is None:
        if kind in unsupported.KINDS:
            return None, [FieldError("kind", f'"{kind}" is {UNSUPPORTED_TEXT} ({supported})')]
        hint = did_you_mean(kind, [*types.KINDS])
        return None, [FieldError("kind", f'unknown kind "{kind}"{hint} ({supported})')]
    if version is None or version == "":
        return cls, [FieldError("apiVersion", f'required: "{cls.API_VERSION}" for kind {kind}')]
    if version != cls.API_VERSION:
        got = f'"{version}"' if isinstance(version, str) else _shape(version)
        return cls, [FieldError("apiVersion", f'expected "{cls.API_VERSION}" for kind {kind}, got {got}')]
    return cls, []


def _label(value: Any) -> str:
    """`ReplicationController/web`, as much of it as there is."""
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        return ""
    metadata = value.get("metadata")
    name = (metadata.get("name") or metadata.get("generateName")) if isinstance(metadata, Mapping) else None
    return f"{value['kind']}/{name}" if isinstance(name, str) and name else str(value["kind"])


def _path(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shape(value: Any) -> str:
    match value:
        case dict():
            return "a map"
        case list():
            return "a list"
        case str():
            return f'"{value}"' if len(value) < 60 else f'"{value[:60]}…"'
        case _:
            return str(value)
