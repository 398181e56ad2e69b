"""What a running proxyd says of itself, as the document at /status.

Owns: its form; `proxyd status` prints it, and every command takes from `options`
what this proxyd was started with. Nothing here changes anything; no password is told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from proxyd.acknowledge import Acknowledger
from proxyd.healthcheck import HealthCheckServer
from proxyd.proxy import Proxy


class StatusReport:
    """Makes the document. `options`: of `proxyd run` by their names; `started` in Unix time."""

    def __init__(
        self,
        proxy: Proxy,
        checks: HealthCheckServer,
        acknowledger: Acknowledger,
        *,
        options: Mapping[str, object],
        started: float,
    ) -> None:
        self._proxy, self._checks, self._acknowledger = proxy, checks, acknowledger
        self._head = {"pid": os.getpid(), "startedAt": started, "options": dict(options)}

    def document(self) -> bytes:
        found: dict[str, Any] = {
            **self._head,
            **self._proxy.status(),
            "acknowledgedRevision": self._acknowledger.written,
            "healthCheckFailures": [str(each) for each in self._checks.failures()],
        }
        return json.dumps(found).encode()
