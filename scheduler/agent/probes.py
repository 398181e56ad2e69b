"""Readiness probes: when to ask a container whether it can serve, and what its answers mean.

Owns: `ProbeState` (pure: counts answers, says when to ask next) and `Prober`,
the threads that ask. Invariants: a container starts out not ready, unless it
was reported ready before the agent restarted; one slow container delays no
other's probe beyond the size of the pool; asking never blocks a sync.

Start latency: the first probe comes at once when initialDelaySeconds is 0, and
until the first success within the first periodSeconds it is repeated every
50 ms (doubling to 0.4 s; exec, which costs dockerd a process, from 0.25 s).
These extra probes do not count as failures. A pod is thus ready within tens of
milliseconds of its server listening, where the kubelet's next probe comes a
whole period later. httpGet and tcpSocket go from the host's network to the
pod's address. Source: Kubernetes' pkg/kubelet/prober and pkg/probe.
"""

from __future__ import annotations

import heapq
import http.client
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from podlane.api.types import Container, Pod, Probe
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from scheduler.agent.runtime import Runtime, RuntimeRefused, RuntimeUnavailable
from scheduler.agent.workers import MakePool, threads

_FAST = 0.05
_FAST_EXEC = 0.25
_SLOWEST_FAST = 0.4
_WORKERS = 8
_IDLE = 60.0
_BODY_SHOWN = 200

Answer = tuple[bool, str]
"""Whether the container can serve, and if not, why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running container with a readiness probe. `running_for` is seconds; `was_ready` as last reported."""

    id: str
    pod: Pod
    container: Container
    probe: Probe
    ip: str
    running_for: float = 0.0
    was_ready: bool = False


class ProbeState:
    """The answers of one container so far. Times are monotonic seconds."""

    def __init__(self, probe: Probe, now: float, *, running_for: float = 0.0, was_ready: bool = False) -> None:
        self.probe = probe
        self.ready = was_ready
        self.due = now + max(0.0, probe.initial_delay_seconds - running_for)
        self._fast_until = self.due + probe.period_seconds
        self._fast = _FAST_EXEC if probe.exec is not None else _FAST
        self._answered = was_ready  # a first success was seen
        self._successes = self._failures = 0

    def answer(self, ok: bool, now: float) -> bool:
        """Take an answer in and set `due`; True when it was a failure that counts."""
        if ok:
            self._answered = True
            self._failures = 0
            self._successes += 1
            if self._successes >= self.probe.success_threshold:
                self.ready = True
        elif not self._answered and now + self._fast < self._fast_until:
            self.due = now + self._fast
            self._fast = min(2 * self._fast, _SLOWEST_FAST)
            return False
        else:
            self._successes = 0
            self._failures += 1
            if self._failures >= self.probe.failure_threshold:
                self.ready = False
        self.due = now + self.probe.period_seconds
        return not ok


class Prober:
    """Give it everything that is to be probed with `set`; ask it for `ready`.

    `on_change` is called when an answer changed who is ready, `on_failure`
    with each failure that counts; both from the prober's threads.
    """

    def __init__(
        self,
        check: Callable[[Target], Answer],
        *,
        on_change: Callable[[], None],
        on_failure: Callable[[Target, str], None],
        clock: Clock | None = None,
        pool: MakePool = threads,
    ) -> None:
        self._check = check
        self._on_change = on_change
        self._on_failure = on_failure
        self._clock = clock or SystemClock()
        self._pool = pool(_WORKERS, "probe")
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._targets: dict[str, Target] = {}
        self._states: dict[str, ProbeState] = {}
        self._due: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._log = get_logger("prober")

    def set(self, targets: Mapping[str, Target]) -> None:
        """Probe exactly these, by container id; what is known of those already probed stays."""
        now = self._clock.monotonic()
        with self._lock:
            for gone in self._targets.keys() - targets.keys():
                self._states.pop(gone, None)
            for identity, target in targets.items():
                state = self._states.get(identity)
                if state is None or state.probe != target.probe:
                    state = self._states[identity] = ProbeState(
                        target.probe, now, running_for=target.running_for, was_ready=target.was_ready
                    )
                    heapq.heappush(self._due, (state.due, next(self._numbers), identity))
            self._targets = dict(targets)
        self._wake.set()

    def ready(self) -> frozenset[str]:
        """Ids of the containers whose probe says ready."""
        with self._lock:
            return frozenset(identity for identity, state in self._states.items() if state.ready)

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set: the body of one thread."""
        threading.Thread(target=self._wake_at, args=(stop,), name="prober-stop", daemon=True).start()
        try:
            while not stop.is_set():
                self._wake.clear()
                self._clock.wait(self._wake, self.step())
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> float:
        """Ask whoever is due; returns the seconds until the next is. `run` is this in a loop."""
        now = self._clock.monotonic()
        for identity in self._take_due(now):
            self._pool.submit(self._ask, identity)
        with self._lock:
            return max(0.0, self._due[0][0] - now) if self._due else _IDLE

    def _wake_at(self, stop: threading.Event) -> None:
        stop.wait()
        self._wake.set()

    def _take_due(self, now: float) -> list[str]:
        taken = []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                due, _, identity = heapq.heappop(self._due)
                state = self._states.get(identity)
                # an entry of a container that is gone, or probed anew with another probe, is stale
                if state is not None and state.due == due:
                    taken.append(identity)
        return taken

    def _ask(self, identity: str) -> None:
        with self._lock:
            target, state = self._targets.get(identity), self._states.get(identity)
        if target is None or state is None:
            return
        try:
            ok, message = self._check(target)
        except Exception as error:  # whatever happens, the next probe must be scheduled
            self._log.warning("probe failed", container=target.container.name, error=str(error), exc_info=error)
            ok, message = False, str(error)
        with self._lock:
            if self._states.get(identity) is not state:
                return
            before = state.ready
            counts = state.answer(ok, self._clock.monotonic())
            changed = before != state.ready
            heapq.heappush(self._due, (state.due, next(self._numbers), identity))
        self._wake.set()
        if counts:
            self._on_failure(target, message)
        if changed:
            self._on_change()


def checker(runtime: Runtime) -> Callable[[Target], Answer]:
    """The real thing: ask over HTTP, TCP, or by a command in the container."""

    def check(target: Target) -> Answer:
        probe = target.probe
        try:
            if probe.http_get is not None:
                return _http(target)
            if probe.tcp_socket is not None:
                port = port_number(target.container, probe.tcp_socket.port)
                address = (probe.tcp_socket.host or target.ip, port)
                socket.create_connection(address, timeout=probe.timeout_seconds).close()
                return True, ""
            if probe.exec is not None:
                return _exec(runtime, target)
        except TimeoutError:
            return False, f"no answer within {probe.timeout_seconds} s"
        except (OSError, http.client.HTTPException, ValueError) as error:
            return False, str(error) or repr(error)
        return True, ""

    return check


def port_number(container: Container, port: int | str) -> int:
    """A port given as a number or by the name of one of the container's ports. Raises ValueError."""
    if isinstance(port, int):
        return port
    for known in container.ports:
        if known.name == port:
            return known.container_port
    raise ValueError(f'container {container.name} has no port named "{port}"')


def _http(target: Target) -> Answer:
    get = target.probe.http_get
    assert get is not None
    port = port_number(target.container, get.port)
    timeout = target.probe.timeout_seconds
    connection: http.client.HTTPConnection
    if get.scheme == "HTTPS":
        context = ssl.create_default_context()  # as in Kubernetes, the certificate is not verified
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(get.host or target.ip, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(get.host or target.ip, port, timeout=timeout)
    headers = {"User-Agent": "podlane-probe/1", "Accept": "*/*", "Connection": "close"}
    headers |= {header.name: header.value for header in get.http_headers}
    try:
        path = get.path if get.path.startswith("/") else f"/{get.path}"
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if 200 <= response.status < 400:
            return True, ""
        return False, f"HTTP probe failed with statuscode: {response.status}"
    finally:
        connection.close()


def _exec(runtime: Runtime, target: Target) -> Answer:
    action = target.probe.exec
    assert action is not None
    try:
        result = runtime.exec(target.id, action.command, target.probe.timeout_seconds)
    except (RuntimeRefused, RuntimeUnavailable) as error:
        return False, str(error)
    said = result.output.decode("utf-8", "replace").strip()[:_BODY_SHOWN]
    return result.exit_code == 0, said or f"exit code {result.exit_code}"
