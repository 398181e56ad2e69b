"""Requests from a lab's hosts, each over a new connection, with every outcome kept.

It is the client of the demonstration, the e2e tests and the benchmarks. A
request that fails is tried again, as an HTTP client in front of a load
balancer does; both counts are reported, so that "the service answered" and
"a connection was lost" cannot be mistaken for each other.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from podlane.lab.network import enter, inside

TRY_TIMEOUT = 0.9
"""Seconds for one try: connect, request and answer. Below the second after which
the kernel sends a lost SYN again, so that a lost packet is a failed try."""

MAX_TRIES = 10
LATE_TOLD = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: who asked, who answered ("" for nobody), after how many tries, when and how long (seconds)."""

    host: str
    backend: str
    tries: int
    at: float
    elapsed: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """`retried` got an answer, but not at the first try; `failed` got none within MAX_TRIES.

    `late` tells the first few of both: who, how long after the first request, and the last error.
    """

    requests: int
    retried: int
    failed: int
    slowest: float
    backends: dict[str, int]
    errors: dict[str, int]
    late: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.retried} answered at a later try, {self.failed} not answered"


def summarize(answers: Sequence[Answer]) -> Summary:
    return Summary(
        requests=len(answers),
        retried=sum(a.tries > 1 and a.backend != "" for a in answers),
        failed=sum(a.backend == "" for a in answers),
        slowest=max((a.elapsed for a in answers), default=0.0),
        backends=dict(sorted(Counter(a.backend for a in answers if a.backend).items())),
        errors=dict(Counter(a.error for a in answers if a.error)),
        late=tuple(_told(a, answers[0].at) for a in answers if a.error)[:LATE_TOLD],
    )


def _told(answer: Answer, begin: float) -> str:
    when, how_long = f"{answer.at - begin:.1f} s", f"{answer.elapsed:.1f} s"
    return f"{answer.host} at {when}: {answer.error}, then {answer.backend or 'nothing'} after {how_long}"


def ask(host: str, address: str, port: int, *, tries: int = MAX_TRIES, timeout: float = TRY_TIMEOUT) -> Answer:
    """GET / from the calling thread's namespace; `error` is the last one met, also when a later try succeeded."""
    begin, error = time.monotonic(), ""
    for attempt in range(1, tries + 1):
        connection = http.client.HTTPConnection(address, port, timeout=timeout)
        try:
            connection.request("GET", "/", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read(1000).decode(errors="replace").strip()
            if response.status == http.client.OK and body:
                return Answer(host, body, attempt, begin, time.monotonic() - begin, error)
            error = f"HTTP {response.status}"
        except (OSError, http.client.HTTPException) as cause:
            error = str(cause) or type(cause).__name__
        finally:
            connection.close()
        time.sleep(0.02)
    return Answer(host, "", tries, begin, time.monotonic() - begin, error)


def ask_from(netns: str, host: str, address: str, port: int, *, count: int = 1, tries: int = MAX_TRIES) -> list[Answer]:
    """Several requests, one after another, from a namespace."""
    with inside(netns):
        return [ask(host, address, port, tries=tries) for _ in range(count)]


class Traffic:
    """Keeps asking from several hosts until stopped: `with Traffic(...) as traffic: …; traffic.mark()`.

    `sources` maps host names to namespaces; `pause` is the time between two
    requests of one host, in seconds, `timeout` how long one try may take.
    """

    def __init__(
        self,
        sources: dict[str, str],
        address: str,
        port: int,
        *,
        pause: float = 0.02,
        timeout: float = TRY_TIMEOUT,
    ) -> None:
        self._address, self._port, self._pause, self._timeout = address, port, pause, timeout
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=item, name=f"traffic-{item[0]}", daemon=True)
            for item in sources.items()
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def mark(self) -> Summary:
        """Summarize what was answered since the last mark."""
        with self._lock:
            answers, self._answers = self._answers, []
        return summarize(answers)

    def stop(self) -> Summary:
        """End all requests, wait for those under way, and summarize since the last mark."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=MAX_TRIES * self._timeout + 5)
        return self.mark()

    def _ask(self, host: str, netns: str) -> None:
        enter(netns)
        while not self._stop.is_set():
            answer = ask(host, self._address, self._port, timeout=self._timeout)
            with self._lock:
                self._answers.append(answer)
            self._stop.wait(self._pause)
