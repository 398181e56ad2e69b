"""Calls to an etcd cluster: which member gets them, and what a failure means.

Owns: the channels, the fail-over inside one call's deadline, the login, and
the translation of etcd's errors into ours. Invariants: a call ends by its
deadline; a request is repeated only if it is harmless to do it twice or if it
surely was not carried out; an endpoint that has been quiet for a while must
show that it is alive and has a leader before it is trusted with a request, so
that a dead one costs seconds (StoreConfig.timeout) and not the deadline.
Source: clientv3's retry rules (clientv3/retry.go), etcd's error texts
(api/v3rpc/rpctypes/error.go).
"""

from __future__ import annotations

import enum
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from etcd3 import etcdrpc

from podlane.errors import PermissionDenied, PodlaneError, StoreUnavailable
from podlane.runtime import metrics
from podlane.runtime.log import get_logger
from podlane.store.config import StoreConfig
from podlane.store.credentials import Credentials
from podlane.store.interface import Compacted, LeaseNotFound, Refused
from podlane.store.tlsfault import Diagnosis

WARM = 3.0  # seconds after an answer in which an endpoint counts as alive
PAUSES = (0.05, 0.5)  # seconds: first and longest pause when every endpoint has failed
HANDSHAKE = 2.5  # times the patience that a plain connection gets
LOGINS = 3  # per call, before a token that is refused again and again is given up

Metadata = tuple[tuple[str, str], ...]
Rpc = Callable[["Stubs"], Callable[..., Any]]
"""Picks the method: it is called with the request, `timeout` (seconds) and `metadata`."""

_CALLS = metrics.counter("podlane_store_calls_total", "Calls to etcd by result: ok, refused, unavailable.", ["result"])
_FAILOVERS = metrics.counter("podlane_store_failovers_total", "Attempts that failed at one endpoint.", ["endpoint"])

_log = get_logger("store")


class Stubs:
    """etcd's services on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.watch = etcdrpc.WatchStub(channel)
        self.auth = etcdrpc.AuthStub(channel)
        self.maintenance = etcdrpc.MaintenanceStub(channel)
        self.cluster = etcdrpc.ClusterStub(channel)
        self.channel = channel


class Endpoint:
    """One member's address; its channel connects at the first call and reconnects by itself."""

    def __init__(self, target: str, channel: grpc.Channel) -> None:
        self.target = target
        self._answered = -float("inf")
        self.use(channel)

    def use(self, channel: grpc.Channel) -> None:
        """From the next call on; what goes on over the one before holds that and ends it."""
        self._channel = channel
        self.stubs = Stubs(channel)

    @property
    def warm(self) -> bool:
        return time.monotonic() - self._answered < WARM

    def answered(self) -> None:
        self._answered = time.monotonic()

    def failed(self) -> None:
        self._answered = -float("inf")

    def prove(self, timeout: float) -> None:
        """Make sure it is alive and part of a cluster with a leader. Raises grpc.RpcError, StoreUnavailable."""
        if self.warm:
            return
        status = self.stubs.maintenance.Status(etcdrpc.StatusRequest(), timeout=timeout)
        if not status.leader:
            raise StoreUnavailable("no leader")
        self.answered()

    def close(self) -> None:
        self._channel.close()


class Endpoints:
    """Thread-safe. Sticks to one endpoint until it fails."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._credentials = Credentials(config)
        self._all = [Endpoint(target, self._channel(target, tls=tls)) for target, tls in config.targets]
        self._lock = threading.Lock()
        self._current = random.randrange(len(self._all))  # so that many clients spread over the members
        self._login = _Login(config)
        self.diagnosis = Diagnosis(config)
        self.closed = threading.Event()

    def call(self, action: str, rpc: Rpc, request: Any, *, timeout: float, repeatable: bool) -> Any:
        """Make a call, at as many endpoints as it takes.

        `repeatable`: doing it twice is the same as doing it once. Otherwise an
        attempt that may have been carried out ends in StoreUnavailable.
        Raises what `error_of` makes of etcd's answer.
        """
        attempts = Attempts(self, action, timeout)
        while True:
            sent = False
            endpoint = attempts.begin()
            try:
                endpoint.prove(min(attempts.left, self._config.timeout))
                metadata = self.metadata(endpoint, attempts.left)
                # a repeatable call may try elsewhere, so it does not wait for one endpoint until the end
                patience = attempts.left / 2 if repeatable and len(self._all) > 1 else attempts.left
                sent = True
                response = rpc(endpoint.stubs)(request, timeout=patience, metadata=metadata)
            except (grpc.RpcError, StoreUnavailable) as error:
                attempts.failed(endpoint, error, repeatable=repeatable or not sent)
            except ValueError:  # gRPC's way to say that the channel was closed under us
                if not self.closed.is_set():
                    raise
            else:
                endpoint.answered()
                _CALLS.labels("ok").inc()
                return response

    def metadata(self, endpoint: Endpoint, timeout: float) -> Metadata:
        """What goes with each request: refuse it where there is no leader, and who we are."""
        token = self._login.token(endpoint, timeout)
        return (("hasleader", "true"), *((("token", token),) if token else ()))

    def relogin(self) -> bool:
        """Log in anew at the next call; False if there is no login to renew."""
        self._login.forget()
        return bool(self._config.username)

    @property
    def count(self) -> int:
        return len(self._all)

    @property
    def timeout(self) -> float:
        return self._config.timeout

    def current(self) -> Endpoint:
        with self._lock:
            return self._all[self._current]

    def leave(self, endpoint: Endpoint) -> None:
        """Go to the next endpoint, unless another thread has done so already; with new certificates, if there are."""
        endpoint.failed()
        _FAILOVERS.labels(endpoint.target).inc()
        with self._lock:
            if self._all[self._current] is endpoint:
                self._current = (self._current + 1) % len(self._all)
            if not self.closed.is_set() and self._credentials.renewed():
                for known, (target, tls) in zip(self._all, self._config.targets, strict=True):
                    known.use(self._channel(target, tls=tls))

    def close(self) -> None:
        with self._lock:
            self.closed.set()
            for endpoint in self._all:
                endpoint.close()

    def _channel(self, target: str, *, tls: bool) -> grpc.Channel:
        return _channel(target, self._credentials.current if tls else None, self._config.timeout)


class Attempts:
    """The bookkeeping of one call: its deadline, and the pauses between rounds over all endpoints."""

    def __init__(self, endpoints: Endpoints, action: str, timeout: float) -> None:
        self._endpoints = endpoints
        self._action = action
        self._deadline = time.monotonic() + timeout
        self._failures = 0
        self._logins = 0
        self._pause = PAUSES[0]
        self._last = "no answer in time"

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least a moment."""
        return max(0.001, self._deadline - time.monotonic())

    def begin(self) -> Endpoint:
        if self._endpoints.closed.is_set():
            raise StoreUnavailable(f"{self._action}: the store is closed")
        if time.monotonic() >= self._deadline:
            raise self._give_up()
        return self._endpoints.current()

    def failed(self, endpoint: Endpoint, error: Exception, *, repeatable: bool) -> None:
        """Prepare the next attempt, or raise what the caller of the call gets."""
        verdict, meaning = verdict_of(error)
        if verdict is Verdict.LOGIN and self._logins < LOGINS and self._endpoints.relogin():
            self._logins += 1
            return
        if verdict is Verdict.ROLES:  # a host is being enrolled; each of its roles may meet us again
            self._last = f"{endpoint.target}: {meaning}"
            self._endpoints.relogin()  # a signed token holds the revision
            self._endpoints.closed.wait(min(PAUSES[0] * random.uniform(0.1, 1.0), self.left))
            return
        if verdict in {Verdict.ANSWER, Verdict.LOGIN}:
            endpoint.answered()
            _CALLS.labels("refused").inc()
            raise self._endpoints.diagnosis.named(with_action(self._action, meaning)) from error
        said = self._endpoints.diagnosis.of(endpoint.target, str(meaning), self.left / 2)
        self._last = f"{endpoint.target}: {said}"
        self._endpoints.leave(endpoint)
        if verdict is Verdict.UNSURE and not repeatable:
            raise self._give_up() from error
        self._failures += 1
        if self._failures % self._endpoints.count == 0:
            # not in step with other hosts, all of which lost etcd at the same moment
            self._endpoints.closed.wait(min(self._pause * random.uniform(0.75, 1.25), self.left))
            self._pause = min(PAUSES[1], self._pause * 2)

    def _give_up(self) -> StoreUnavailable:
        _CALLS.labels("unavailable").inc()
        return StoreUnavailable(f"{self._action}: {self._last}")


class _Login:
    """The token that stands for user and password; etcd's simple tokens expire when unused for 5 minutes."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._token: str | None = None if config.username else ""

    def token(self, endpoint: Endpoint, timeout: float) -> str:
        """The token, "" if none is needed. Raises grpc.RpcError."""
        token = self._token
        if token is not None:
            return token
        if not self._lock.acquire(timeout=timeout):
            raise StoreUnavailable("another login takes too long")
        try:
            if self._token is None:
                self._token = self._authenticate(endpoint, timeout)
            return self._token
        finally:
            self._lock.release()

    def forget(self) -> None:
        if self._config.username:
            self._token = None

    def _authenticate(self, endpoint: Endpoint, timeout: float) -> str:
        request = etcdrpc.AuthenticateRequest(name=self._config.username, password=self._config.password)
        try:
            return str(endpoint.stubs.auth.Authenticate(request, timeout=timeout).token)
        except grpc.RpcError as error:
            if "authentication is not enabled" in str(error.details()):
                return ""  # as clientv3: credentials that are not asked for do no harm
            raise


class Verdict(enum.Enum):
    ANSWER = "etcd's answer: the same everywhere"
    LOGIN = "the token is not valid any more"
    ROLES = "users or roles changed while it was on its way: not carried out"
    UNSENT = "surely not carried out"
    UNSURE = "perhaps carried out"


_STALE_LOGIN = ("invalid auth token",)
_ROLES_CHANGED = ("revision of auth store is old",)
_DENIED = ("permission denied", "user name is empty", "authentication failed", "user name not found", "user not found")

# (status code or any, one of these in the text, what it means, the caller's error); the first that fits counts
_RULES: tuple[tuple[grpc.StatusCode | None, tuple[str, ...], Verdict, type[PodlaneError]], ...] = (
    (None, _STALE_LOGIN, Verdict.LOGIN, PermissionDenied),
    (None, _ROLES_CHANGED, Verdict.ROLES, StoreUnavailable),
    (None, _DENIED, Verdict.ANSWER, PermissionDenied),
    (grpc.StatusCode.PERMISSION_DENIED, ("",), Verdict.ANSWER, PermissionDenied),
    (None, ("lease not found",), Verdict.ANSWER, LeaseNotFound),
    # compacted, or a revision of the future: then the store is not the one that was read before
    (grpc.StatusCode.OUT_OF_RANGE, ("",), Verdict.ANSWER, Compacted),
    # there was no connection to send it on
    (None, ("failed to connect to all addresses",), Verdict.UNSENT, StoreUnavailable),
    # etcd turned it away at the door
    (None, ("no leader", "too many requests", "raft proposal dropped"), Verdict.UNSENT, StoreUnavailable),
    (grpc.StatusCode.INVALID_ARGUMENT, ("",), Verdict.ANSWER, Refused),
    (grpc.StatusCode.FAILED_PRECONDITION, ("",), Verdict.ANSWER, Refused),
    (grpc.StatusCode.NOT_FOUND, ("",), Verdict.ANSWER, Refused),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, ("",), Verdict.ANSWER, Refused),
    (None, ("",), Verdict.UNSURE, StoreUnavailable),
)


def verdict_of(error: Exception) -> tuple[Verdict, PodlaneError]:
    """What a failed attempt means, and the error that says so (without the action)."""
    if isinstance(error, PodlaneError):
        return Verdict.UNSENT, error
    assert isinstance(error, grpc.RpcError)
    code, text = error.code(), str(error.details() or "")
    verdict, kind = next(
        (verdict, kind)
        for wanted, parts, verdict, kind in _RULES
        if wanted in {None, code} and any(part in text for part in parts)
    )
    if kind is Compacted:
        return verdict, Compacted()
    return verdict, kind(_cause(text) or code.name.lower().replace("_", " "))


def with_action(action: str, error: PodlaneError) -> PodlaneError:
    """The same error with what was being done before its cause."""
    return error if isinstance(error, Compacted) else type(error)(f"{action}: {error}")


def error_of_cancel(reason: str) -> PodlaneError:
    """What etcd's reason for ending a watch means (without the action)."""
    if any(part in reason for part in (*_DENIED, *_STALE_LOGIN, *_ROLES_CHANGED)):
        return PermissionDenied(reason)
    return StoreUnavailable(reason or "cancelled by etcd")


def _cause(text: str) -> str:
    """The end of gRPC's chain of causes: `connect: Connection refused (111)`."""
    cause = text.rpartition("last error: ")[2]
    return re.sub(r"^(UNKNOWN|UNAVAILABLE): |(ipv[46]:\S+: )|Failed to connect to remote host: ", "", cause)


def _channel(target: str, credentials: grpc.ChannelCredentials | None, connect_timeout: float) -> grpc.Channel:
    if credentials is not None:  # on a slow machine that is busy a handshake took more than two seconds
        connect_timeout *= HANDSHAKE
    options = (
        # a connection that swallows everything is noticed in 15 s while streams are open; etcd refuses
        # pings more often than every 5 s, and any without a stream
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout * 1000)),  # in fact the connect timeout
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", -1),  # a page of a list, or a revision's events, may be large
        ("grpc.max_send_message_length", -1),  # etcd knows its own limit and says it
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),
    )
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
