"""Config maps and secrets: what pods read as files and variables. Secrets are not encrypted in the store."""

from __future__ import annotations

from typing import ClassVar

from podlane.api.types.base import Object


class ConfigMap(Object, frozen=True, kw_only=True):
    """`data` is text, `binary_data` base64; no key is in both."""

    KIND: ClassVar[str] = "ConfigMap"
    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}
    immutable: bool = False


class Secret(Object, frozen=True, kw_only=True):
    """`data` is base64; `string_data` is text that is made part of `data` before the secret is stored."""

    KIND: ClassVar[str] = "Secret"
    type: str = "Opaque"
    data: dict[str, str] = {}
    string_data: dict[str, str] = {}
    immutable: bool = False
