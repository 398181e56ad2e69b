"""Asking the proxyd that runs on this host what it says of itself.

Owns: the client's side of its health port. Invariant: an answer that does not
come, or is not understood, costs two seconds and is said to be missing; it is never an error.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT = 2.0
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Answers:
    """`status`: its /status document, None if it does not answer. `waiting`: why it is not ready, by check."""

    where: str
    status: Mapping[str, Any] | None = None
    waiting: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.status is not None


def ask(ip: str, port: int) -> Answers:
    """Ask for the document and for readiness."""
    host = _LOCAL.get(ip, ip)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    code, body = _get(host, port, "/status")
    try:
        status = json.loads(body) if code == 200 else None
    except ValueError:
        status = None
    if not isinstance(status, dict):
        return Answers(where)
    return Answers(where, status, read_readiness(_get(host, port, "/readyz")[1].decode(errors="replace")))


def read_readiness(text: str) -> dict[str, str]:
    """The checks that fail, and why, from /readyz's lines."""
    found = {}
    for line in text.splitlines():
        name, _, why = line.removeprefix("[-]").partition(" failed: ")
        if line.startswith("[-]"):
            found[name] = why
    return found


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
