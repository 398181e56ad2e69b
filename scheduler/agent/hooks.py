"""Carrying out a lifecycle hook. Its place in a container's life is in planstart.py and planstop.py.

Invariants: it ends by its timeout, and never raises. As in Kubernetes any
answer to an httpGet is a good one: only the asking can fail. Source:
pkg/kubelet/lifecycle/handlers.go.
"""

from __future__ import annotations

import http.client

from scheduler.agent import checks
from scheduler.agent.actions import RunHook
from scheduler.agent.runtime import Runtime

_ASKING = 30.0
"""Seconds for an httpGet or tcpSocket at most."""


def carry_out(runtime: Runtime, step: RunHook) -> checks.Answer:
    """Whether a hook (not of the kind `sleep`) went well, and if not, why."""
    hook, timeout = step.hook, min(step.timeout, _ASKING)
    try:
        if hook.exec is not None:
            return checks.run(runtime, step.id, hook.exec.command, step.timeout)
        if hook.http_get is not None:
            checks.http_get(hook.http_get, step.spec, step.ip, timeout)
        elif hook.tcp_socket is not None:
            checks.tcp_socket(hook.tcp_socket, step.spec, step.ip, timeout)
    except TimeoutError:
        return False, f"not over within {step.timeout if hook.exec is not None else timeout:g} s"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, str(error) or repr(error)
    return True, ""
