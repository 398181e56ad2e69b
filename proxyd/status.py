"""What a running proxyd says of itself, as the document at /status.

Owns: its form; `proxyd status` prints it. Nothing here changes anything.
"""

from __future__ import annotations

import json
from typing import Any

from proxyd.healthcheck import HealthCheckServer
from proxyd.proxy import Proxy


def status_document(proxy: Proxy, checks: HealthCheckServer) -> bytes:
    document: dict[str, Any] = {**proxy.status(), "healthCheckFailures": [str(each) for each in checks.failures()]}
    return json.dumps(document).encode()
