"""Certificates for tests of the agent's port; each is made once."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from scheduler.agent.certificate import Certificate, ensure_certificate


@cache
def certificate(node: str = "n1") -> Certificate:
    with tempfile.TemporaryDirectory() as folder:
        return ensure_certificate(Path(folder), node)
