"""Label selectors: the map form in specs and the text form of `-l`.

Owns: what a selector selects. Invariant: a selector without requirements
matches every set of labels, as Kubernetes' labels.Everything(); where
Kubernetes says that an empty selector selects nothing (services, replication
controllers) use `selects`. Source: apimachinery's pkg/labels/selector.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from podlane.api.names import label_key_error, label_value_error
from podlane.errors import UsageError

Operator = Literal["=", "!=", "in", "notin", "exists", "!", ">", "<"]

_TOKEN = re.compile(r"\s*(?P<token>==?|!=|[(),!<>]|[^\s(),!=<>]+)")


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether the labels carry every pair of the selector; an empty selector matches everything."""
    return selector.items() <= labels.items()


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """As `matches`, but an empty selector selects nothing (services and controllers)."""
    return bool(selector) and matches(selector, labels)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term. `values` has one entry but for `in` and `notin`, and none for `exists` and `!`."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes: the negative operators also match where the key is absent."""
        present = self.key in labels
        match self.operator:
            case "exists":
                return present
            case "!":
                return not present
            case "=" | "in":
                return present and labels[self.key] in self.values
            case "!=" | "notin":
                return not present or labels[self.key] not in self.values
            case ">" | "<":
                if not present or not _is_integer(labels[self.key]):
                    return False
                have, bound = int(labels[self.key]), int(self.values[0])
                return have > bound if self.operator == ">" else have < bound

    def __str__(self) -> str:
        match self.operator:
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case "in" | "notin":
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"
            case _:
                return f"{self.key}{self.operator}{self.values[0]}"


@dataclass(frozen=True, slots=True)
class Selector:
    """Requirements that must all hold."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


def of(labels: Mapping[str, str]) -> Selector:
    """The selector of a map, as `-l` would spell it."""
    return Selector(tuple(Requirement(key, "=", (value,)) for key, value in sorted(labels.items())))


def parse(text: str) -> Selector:
    """Read `app=web,tier!=db,env in (a,b),!legacy,size>3`. Raises UsageError saying what is wrong where."""
    return _Parser(text).selector()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        self.at = 0
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f'unexpected "{text[position:].strip()}"')
            self.tokens.append(match["token"])
            position = match.end()

    def error(self, cause: str) -> UsageError:
        return UsageError(f'parse selector "{self.text}": {cause}')

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, wanted: str) -> None:
        token = self.take()
        if token != wanted:
            raise self.error(f'expected "{wanted}", got ' + (f'"{token}"' if token else "the end"))

    def selector(self) -> Selector:
        requirements: list[Requirement] = []
        while self.peek():
            requirements.append(self.requirement())
            if self.peek():
                self.expect(",")
                if not self.peek():
                    raise self.error("expected another requirement after the last comma")
        return Selector(tuple(requirements))

    def requirement(self) -> Requirement:
        if self.peek() == "!":
            self.take()
            return Requirement(self.key(), "!")
        key = self.key()
        match self.peek():
            case "" | ",":
                return Requirement(key, "exists")
            case "=" | "==":
                self.take()
                return Requirement(key, "=", (self.value(),))
            case "!=":
                self.take()
                return Requirement(key, "!=", (self.value(),))
            case "in" | "notin" as operator:
                self.take()
                return Requirement(key, "in" if operator == "in" else "notin", self.values())
            case ">" | "<" as operator:
                self.take()
                bound = self.value()
                if not _is_integer(bound):
                    raise self.error(f'expected an integer after "{operator}", got "{bound}"')
                return Requirement(key, ">" if operator == ">" else "<", (bound,))
            case token:
                raise self.error(f'expected an operator after "{key}", got "{token}"')

    def key(self) -> str:
        token = self.take()
        if error := label_key_error(token):
            raise self.error(error)
        return token

    def value(self) -> str:
        if self.peek() in {"", ","}:
            return ""
        token = self.take()
        if error := label_value_error(token):
            raise self.error(error)
        return token

    def values(self) -> tuple[str, ...]:
        self.expect("(")
        values: list[str] = []
        while True:
            values.append("" if self.peek() == ")" else self.value())
            if self.peek() != ",":
                break
            self.take()
        self.expect(")")
        return tuple(values)


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) is not None
