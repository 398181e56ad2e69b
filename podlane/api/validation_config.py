"""Kubernetes' rules for config maps and secrets, new and changed.

Owns: keys, sizes, base64, what each type of secret must have, `immutable`.
Invariant: as in validation.py. No error shows a secret's data. Source:
ValidateConfigMap, ValidateSecret and their Update functions in Kubernetes'
pkg/apis/core/validation/validation.go.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from podlane.api import names, types
from podlane.api.fields import Errors, join

SIZE_LIMIT = 2**20
"""Bytes of all values together."""

_NEEDED = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
"""Keys that a type of secret must have."""
_JSON_KEYS = (".dockercfg", ".dockerconfigjson")
_BASIC_AUTH = "kubernetes.io/basic-auth"


def decoded(text: str) -> bytes | None:
    """The bytes that base64 text stands for, None if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def check_config_map(config: types.ConfigMap, path: str, errors: Errors) -> None:
    size = sum(len(value.encode()) for value in config.data.values())
    for key in config.data:
        errors.check(f"{join(path, 'data')}[{key}]", names.config_key_error(key))
        if key in config.binary_data:
            errors.add(f"{join(path, 'data')}[{key}]", "the key is also in binaryData")
    size += _check_base64(config.binary_data, join(path, "binaryData"), errors)
    _check_size(size, path, errors)


def check_secret(secret: types.Secret, path: str, errors: Errors) -> None:
    place = join(path, "data")
    _check_size(_check_base64(secret.data, place, errors), path, errors)
    needed = _NEEDED.get(secret.type, ())
    for key in needed:
        if key not in secret.data:
            errors.add(f"{place}[{key}]", f'required where type is "{secret.type}"')
        elif key in _JSON_KEYS and not _is_json(decoded(secret.data[key])):
            errors.add(f"{place}[{key}]", "expected JSON")
    if secret.type == _BASIC_AUTH and not {"username", "password"} & secret.data.keys():
        errors.add(f"{place}[username]", f'required where type is "{_BASIC_AUTH}", or else password')


def _check_base64(data: Mapping[str, str], path: str, errors: Errors) -> int:
    """Returns the size of what it stands for."""
    size = 0
    for key, text in data.items():
        errors.check(f"{path}[{key}]", names.config_key_error(key))
        value = decoded(text)
        if value is None:
            errors.add(f"{path}[{key}]", "expected base64")
        size += len(value or b"")
    return size


def _check_size(size: int, path: str, errors: Errors) -> None:
    if size > SIZE_LIMIT:
        errors.add(join(path, "data"), f"expected at most {SIZE_LIMIT} bytes in all, got {size}")


def _is_json(text: bytes | None) -> bool:
    try:
        json.loads(text or b"")
    except ValueError:
        return False
    return True


def check_config_map_update(old: types.ConfigMap, new: types.ConfigMap, errors: Errors) -> None:
    if old.immutable:
        _check_kept(
            new.immutable, {"data": old.data == new.data, "binaryData": old.binary_data == new.binary_data}, errors
        )


def check_secret_update(old: types.Secret, new: types.Secret, errors: Errors) -> None:
    if old.type != new.type:
        errors.add("type", f'immutable: it is "{old.type}", got "{new.type}"')
    if old.immutable:
        _check_kept(new.immutable, {"data": old.data == new.data}, errors)


def _check_kept(immutable: bool, same: Mapping[str, bool], errors: Errors) -> None:
    if not immutable:
        errors.add("immutable", "once true it stays true; delete the object and create it anew")
    for field, unchanged in same.items():
        if not unchanged:
            errors.add(field, "immutable: the object says immutable: true; delete it and create it anew")
