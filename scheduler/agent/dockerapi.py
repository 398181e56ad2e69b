"""Calls to dockerd: a deadline for each, one version of the API, and errors in our words.

Owns: the docker package's clients. Invariants: every wait for dockerd ends, also
the first one of a stream (the package's own events and pull have no deadline; a
stopped dockerd accepts connections and never answers); nothing but a stream's
next piece is waited for without one; what holds a lock asks nothing, so one call
that hangs does not add its time to another's. We speak the oldest API that we
and the engine know, so that a newer engine answers as the older one does, and
ask again which that is when the engine says that it was replaced. Source: Docker
Engine API, "Versioning": 1.41 is Docker 20.10; 29 knows nothing older than 1.44.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from scheduler.agent.runtime import QUICK_TIMEOUT, NotRunning, RuntimeRefused, RuntimeUnavailable

T = TypeVar("T")

WORK_TIMEOUT = 120.0
"""Seconds for steps; under load dockerd takes its time to start a container."""
PULL_TIMEOUT = 60.0
"""Seconds a pull may go without any progress, as with the kubelet."""
OLDEST = "1.41"
_POOL = 32
_CHUNK = 65536


class _Client(docker.APIClient):
    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs["timeout"] = kwargs.get("timeout") or self.timeout  # which is None for the package's own streams
        return kwargs


class DockerApi:
    """`base_url` as in `unix:///run/docker.sock`. Nothing is sent before the first call. Thread-safe.

    A call is a function of the docker package's client. `kinds` say what HTTP
    404 means for it, then what 409 means; anything else is RuntimeRefused, or
    RuntimeUnavailable when there was no answer.
    """

    def __init__(self, base_url: str, *, quick: float = QUICK_TIMEOUT, work: float = WORK_TIMEOUT) -> None:
        self._url = base_url
        self._timeouts = {"quick": quick, "work": work, "pull": PULL_TIMEOUT}
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._version = ""

    def ask(self, what: str, call: Callable[[Any], T], *kinds: type[RuntimeRefused]) -> T:
        return self._call("quick", what, call, *kinds)

    def do(self, what: str, call: Callable[[Any], T], *kinds: type[RuntimeRefused]) -> T:
        return self._call("work", what, call, *kinds)

    def fetch(self, what: str, call: Callable[[Any], T]) -> T:
        """For a call that lasts as long as there is progress."""
        return self._call("pull", what, call)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def _call(self, kind: str, what: str, call: Callable[[Any], T], *kinds: type[RuntimeRefused]) -> T:
        try:
            try:
                return call(self._client(kind))
            except docker.errors.APIError as error:
                if error.status_code != 400 or "client version" not in str(error.explanation):
                    raise
                self._forget_version()  # another dockerd has come in the place of the one we knew
                return call(self._client(kind))
        except docker.errors.APIError as error:
            raise _refusal(what, error, kinds) from error
        except requests.exceptions.Timeout as error:
            text = f"{what}: dockerd has not answered within {self._timeouts[kind]:g} s"
            raise RuntimeUnavailable(text) from error
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise RuntimeUnavailable(f"{what}: {_cause(error)}") from error

    def _client(self, kind: str) -> Any:
        with self._lock:
            version, client = self._version, self._clients.get(kind)
        if client is not None:
            return client
        client = self._connect(version or self._negotiate(), self._timeouts[kind])
        with self._lock:
            self._version = client.api_version
            return self._clients.setdefault(kind, client)

    def _negotiate(self) -> str:
        """The oldest version that both sides know."""
        with self._connect(OLDEST, self._timeouts["quick"]) as client:
            told = client.version(api_version=False)
        lowest, highest = str(told.get("MinAPIVersion", OLDEST)), str(told["ApiVersion"])
        wanted = max(lowest, OLDEST, key=_number)
        if _number(highest) < _number(wanted):
            name = f"dockerd {told.get('Version', '')}"
            raise RuntimeUnavailable(f"talk to {name}: expected API {OLDEST} (Docker 20.10) or later, got {highest}")
        return wanted

    def _connect(self, version: str, timeout: float) -> Any:
        client: Any = _Client(self._url, version=version, max_pool_size=_POOL)
        client.timeout = timeout
        # else each call looks for proxies and a .netrc, which costs as much as packing the request
        client.trust_env = False
        return client

    def _forget_version(self) -> None:
        with self._lock:
            self._version, self._clients = "", {}


class Stream:
    """What dockerd sends piece by piece (a docker.types.CancellableStream); pieces may be long in coming."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        yield from self._stream

    def close(self) -> None:
        """End the iteration; may be called from another thread."""
        with suppress(OSError, AttributeError):  # it may have ended by itself in this very moment
            self._stream.close()


def without_deadline(api: Any, stream: Any) -> Any:
    """Let a stream's pieces be long in coming, now that it has begun."""
    api._disable_socket_timeout(api._get_raw_response_socket(stream._response))
    return stream


def in_pieces(api: Any, container: str, stream: Any) -> Any:
    """Let the output of a container with a terminal come as dockerd sends it: the package gives it byte by byte."""
    if api.inspect_container(container)["Config"]["Tty"]:
        stream._stream = stream._response.iter_content(_CHUNK)
    return stream


def _refusal(what: str, error: Any, kinds: tuple[type[RuntimeRefused], ...]) -> RuntimeRefused:
    text = f"{what}: {error.explanation or error}".replace("\n", " ")
    code = error.status_code
    if code == 404 and kinds:
        return kinds[0](text)
    if code == 409 and len(kinds) > 1:
        return kinds[1](text)
    if code == 500 and "is not running" in text and NotRunning in kinds:
        return NotRunning(text)
    return RuntimeRefused(text)


def _cause(error: BaseException) -> str:
    """The kernel's word for what happened, where there is one below the package's wrappings."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return f"dockerd: {found.strerror}"
        found = found.__cause__ or found.__context__
    return str(error)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
