"""The agent's own API: logs of containers, commands in them, and what they use.

Owns: `GET /logs/{namespace}/{pod}/{container}?follow&tail&since&sinceSeconds&timestamps&previous&limitBytes`,
`POST /exec/{namespace}/{pod}/{container}` with {"command", "tty", "stdin"}, answered
by 101 and frames (frames.py), and `GET /stats` (stats.py). `since` is Unix seconds.
Errors are one line of text.

Invariants, for the port is open to all who can reach it: every byte is encrypted;
nothing is answered but a refusal to those the guard does not know (guard.py: an
operator's certificate or the cluster's token); they have REQUEST_TIMEOUT for everything
until then, MAX_HEAD bytes, and few connections, so that none of it is missing to
those it knows; who is known gets at most MAX_SESSIONS at once; a session ends
when either side does, or when its certificate is revoked.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable
from http.server import ThreadingHTTPServer
from typing import Any

from podlane.api.types import Pod
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.runtime.wire import Wire
from scheduler.agent import containers as c
from scheduler.agent.apirequest import MAX_SESSIONS, Request
from scheduler.agent.guard import Guard, Refused
from scheduler.agent.history import attempts
from scheduler.agent.runtime import Record, Runtime

MAX_STRANGERS = 96
"""Connections at once that have not shown who they are, and of these from one address:"""
MAX_STRANGERS_EACH = 24
REQUEST_TIMEOUT = 10.0
"""Seconds for the handshake and the whole request."""


class AgentServer:
    """Serves from construction on; `close` ends it. Raises PodlaneError when the address cannot be had.

    `pods` are those bound to the node (raising PodlaneError while they are not
    known); `usage` is what `GET /stats` answers with.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        runtime: Runtime,
        guard: Guard,
        pods: Callable[[], Iterable[Pod]] = tuple,
        usage: Callable[[], object] = dict,
        request_timeout: float = REQUEST_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self.runtime = runtime
        self.clock = clock or SystemClock()
        self.guard = guard
        self.usage = usage
        self.request_timeout = request_timeout
        self.sessions = threading.BoundedSemaphore(MAX_SESSIONS)
        self._pods = pods
        self._open: dict[Wire, int] = {}
        self._opening = threading.Lock()
        try:
            self._server = RequestServer((host, port), self)
        except OSError as error:
            raise PodlaneError(f"listen on {host}:{port}: {error.strerror or error}") from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="agent-api", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def begin(self, wire: Wire) -> None:
        """Before the guard is asked, so that a revocation misses nobody."""
        with self._opening:
            self._open[wire] = wire.subject().serial

    def end(self, wire: Wire) -> None:
        with self._opening:
            self._open.pop(wire, None)

    def end_sessions(self, revoked: Container[int]) -> None:
        """Cut off who was known by one of these serial numbers."""
        with self._opening:
            for wire, serial in self._open.items():
                if serial in revoked:
                    wire.shut()

    def find(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> Record:
        """The latest (or the one before) container of a pod. Raises Refused."""
        mine = [
            r
            for r in self.runtime.list()
            if r.labels.get(c.POD_NAMESPACE) == namespace and r.labels.get(c.POD_NAME) == pod
        ]
        # a pod of the same name may be ending still: the younger one is meant
        mine.sort(key=lambda r: r.created_at, reverse=True)
        mine = [r for r in mine if c.pod_uid(r) == c.pod_uid(mine[0])]
        history = [r for r in attempts(mine, container) if container != c.INFRA]
        if not history:
            raise Refused(404, f'container "{container}" of pod {namespace}/{pod} is not on this node')
        if not previous or self._awaits_restart(history[0]):
            return history[0]
        if len(history) < 2:
            raise Refused(404, f'previous terminated container "{container}" in pod "{pod}" not found')
        return history[1]

    def _awaits_restart(self, last: Record) -> bool:
        """An ended container that will be started again is, as with the kubelet, itself the previous one."""
        try:
            pod = next((p for p in self._pods() if p.metadata.uid == c.pod_uid(last)), None)
        except PodlaneError:
            return False
        if pod is None or last.state != "exited":
            return False
        policy = pod.spec.restart_policy
        return policy == "Always" or (policy == "OnFailure" and last.exit_code != 0)


class RequestServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], agent: AgentServer) -> None:
        self.agent = agent
        self._lock = threading.Lock()
        self._strangers: Counter[str] = Counter()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Request)

    def server_bind(self) -> None:
        # not HTTPServer's: it asks the resolver for a name nobody needs
        # connections that we closed are remembered for a minute, and an agent that is restarted would have to wait
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "agent", self.server_address[1]

    def get_request(self) -> tuple[Any, Any]:
        connection, address = self.socket.accept()
        context = self.agent.guard.context()
        # the handshake is the connection's own thread's: it would hold up all others here
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether one more may come in that has not shown who it is."""
        del request
        host = client_address[0]
        with self._lock:
            if self._strangers.total() >= MAX_STRANGERS or self._strangers[host] >= MAX_STRANGERS_EACH:
                return False
            self._strangers[host] += 1
            return True

    def no_stranger(self, host: str) -> None:
        """One of those `verify_request` let in has shown who it is, or has gone."""
        with self._lock:
            self._strangers[host] -= 1
            if not self._strangers[host]:
                del self._strangers[host]

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        get_logger("agent-api").debug("connection ended", client=client_address[0], exc_info=True)
