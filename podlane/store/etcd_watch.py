"""One watch on etcd: a stream that is either alive or known to be dead.

Owns: the Watch protocol's life (created, events, progress, cancelled,
compacted). Invariants: events arrive complete and in order or `next` raises;
a stream on which nothing is heard is asked for progress, and given up when it
does not answer, so a peer that vanished without a word is noticed within
QUIET + ANSWER seconds whatever TCP thinks.

Two things etcd says must not be believed. The header's revision beside events:
when a watch catches up, more may follow below it, so a batch reaches to its
last event. The revision in the answer to a progress request (watch id -1):
before 3.4.25 and 3.5.8 it may overtake events, so it proves life and nothing
else. Progress notices that etcd sends on its own are in order.
Fragments are never asked for (the stubs do not know them), so a revision is
never split; the message size is not limited.
Source: server/etcdserver/api/v3rpc/watch.go, mvcc/watchable_store.go.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from podlane.errors import PermissionDenied, PodlaneError, StoreUnavailable
from podlane.store import wire
from podlane.store.endpoints import Attempts, Endpoint, Endpoints, error_of_cancel, verdict_of, with_action
from podlane.store.interface import Compacted, WatchBatch

QUIET = 5.0  # seconds without a word before progress is asked for
ANSWER = 5.0  # seconds it may take
BACKLOG = 64  # batches read ahead of the caller; then gRPC's flow control holds etcd back


def open_watch(endpoints: Endpoints, starts: Mapping[str, int], timeout: float, *, exact: bool = False) -> EtcdWatch:
    """Open a watch at whichever endpoint accepts it: one stream for all prefixes, each from its revision on.

    `exact`: they are whole keys.

    Raises StoreUnavailable, PermissionDenied.
    """
    action = f"watch {next(iter(starts))}" + (f" and {len(starts) - 1} more" if len(starts) > 1 else "")
    attempts = Attempts(endpoints, action, timeout)
    denied = False
    while True:
        endpoint = attempts.begin()
        try:
            endpoint.prove(min(attempts.left, endpoints.timeout))
            metadata = endpoints.metadata(endpoint, attempts.left)
            watch = EtcdWatch(endpoints, endpoint, action)
            watch.open(starts, metadata, min(attempts.left, endpoints.timeout), exact=exact)
        except (grpc.RpcError, StoreUnavailable) as error:
            attempts.failed(endpoint, error, repeatable=True)
        except ValueError:  # gRPC's way to say that the channel was closed under us
            if not endpoints.closed.is_set():
                raise
        except PermissionDenied as error:
            # perhaps the token has expired, or roles changed at that moment: etcd says the same
            if denied:
                raise endpoints.diagnosis.named(with_action(action, error)) from error
            endpoints.relogin()
            denied = True
        else:
            return watch


class EtcdWatch:
    """Made by `open_watch`."""

    def __init__(self, endpoints: Endpoints, endpoint: Endpoint, action: str) -> None:
        self._endpoints = endpoints
        self._endpoint = endpoint
        self._action = action
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._batches: deque[WatchBatch] = deque()
        self._to_create = 1
        self._error: PodlaneError | None = None
        self._cancelled = False
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._call: Any = None

    def open(self, starts: Mapping[str, int], metadata: Any, timeout: float, *, exact: bool = False) -> None:
        """Start the stream and wait until etcd has taken up every prefix. Raises what `next` does."""
        self._to_create = len(starts)
        for prefix, revision in starts.items():
            self._requests.put(wire.watch_request(prefix, revision, exact=exact))
        self._call = self._endpoint.stubs.watch.Watch(self._outgoing(), metadata=metadata)
        threading.Thread(target=self._read, name=self._action, daemon=True).start()
        with self._state:
            self._state.wait_for(lambda: not self._to_create or self._error is not None, timeout)
            error = None if not self._to_create else self._error or StoreUnavailable("not taken up in time")
        if error is not None:
            self.cancel()
            raise error

    def next(self, timeout: float) -> WatchBatch | None:
        deadline = time.monotonic() + timeout
        with self._state:
            while True:
                if self._batches:
                    self._state.notify_all()  # there is room for the reader
                    return self._batches.popleft()
                if self._error is not None:
                    raise with_action(self._action, self._error)
                now = time.monotonic()
                if now >= deadline:
                    return None
                self._state.wait(min(deadline, self._next_check(now)) - now)

    def cancel(self) -> None:
        with self._state:
            self._cancelled = True
            self._batches.clear()
            self._fail(StoreUnavailable("cancelled"))
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _next_check(self, now: float) -> float:
        """When to look again whether the stream lives; asks it, or gives it up. The lock is held."""
        if self._asked is not None and self._heard < self._asked:
            if now < self._asked + ANSWER:
                return self._asked + ANSWER
            self._endpoints.leave(self._endpoint)
            self._fail(StoreUnavailable(f"no answer for {now - self._heard:.0f} s"))
            return now
        if now >= self._heard + QUIET:
            self._asked = now
            self._requests.put(wire.progress_request())
            return now + ANSWER
        return self._heard + QUIET

    def _outgoing(self) -> Iterator[Any]:
        while (request := self._requests.get()) is not None:
            yield request

    # --- the reader's thread ---------------------------------------------------------

    def _read(self) -> None:
        try:
            for response in self._call:
                self._take(response)
            error: PodlaneError = StoreUnavailable("stream ended")
        except grpc.RpcError as raised:
            _, error = verdict_of(raised)
        with self._state:
            if self._error is None:
                self._endpoints.leave(self._endpoint)
            self._fail(error)
        self._requests.put(None)

    def _take(self, response: Any) -> None:
        batch = None
        if response.events:
            events = tuple(wire.watch_event(event) for event in response.events)
            batch = WatchBatch(events, events[-1].kv.mod_revision)
        elif response.watch_id >= 0 and not response.created and not response.canceled:
            batch = WatchBatch((), response.header.revision)
        with self._state:
            self._heard = time.monotonic()
            if response.canceled:
                self._fail(
                    Compacted(response.compact_revision)
                    if response.compact_revision
                    else error_of_cancel(response.cancel_reason)
                )
            elif response.created:
                self._to_create -= 1
                self._state.notify_all()
            if batch is not None:
                self._state.wait_for(lambda: len(self._batches) < BACKLOG or self._cancelled)
                self._batches.append(batch)
                self._state.notify_all()

    def _fail(self, error: PodlaneError) -> None:
        """End it; what was read before is still handed out. The lock is held."""
        if self._error is None:
            self._error = error
        self._state.notify_all()
