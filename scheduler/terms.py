"""Finding who selects whom without asking everybody.

Owns: the key under which selectors and labels meet. Invariant: what a selector
selects is entered, under one of its labels, where the selector is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from podlane.api.types import Object

Term = tuple[str, str, str]
"""Namespace, label, value."""


def terms_of(obj: Object) -> list[Term]:
    """Every one of its labels."""
    return [(obj.metadata.namespace, label, value) for label, value in obj.metadata.labels.items()]


def term_of(namespace: str, selector: Mapping[str, str]) -> Term:
    """One that all it selects must have; an empty selector selects nothing."""
    return (namespace, *max(selector.items(), default=("", "")))


def discard(index: dict[Any, Any], place: Any, key: Any) -> None:
    """Take a key out of a place (a set or a dict of keys), and the place away when it is empty."""
    entries = index.get(place)
    if entries is not None:
        if isinstance(entries, dict):
            entries.pop(key, None)
        else:
            entries.discard(key)
        if not entries:
            del index[place]
