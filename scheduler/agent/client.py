"""The other side of the agent's API, for the operator's command.

Owns: logs and exec over HTTP to one agent. Invariants: a refusal becomes an
AgentError with the agent's own words; nothing is asked without a deadline but
what a person waits for (followed logs, a running command).
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast
from urllib.parse import quote, urlencode, urlsplit

from podlane.errors import PodlaneError
from scheduler.agent import frames

TIMEOUT = 10.0
"""Seconds for connecting and for the agent's answer to begin."""
_CHUNK = 65536


class AgentError(PodlaneError):
    """The agent refused, or cannot be reached; `status` is 0 then."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class AgentClient:
    """`base_url` as in `http://192.168.64.11:10250`, `token` is ClusterConfig.agent_token."""

    def __init__(self, base_url: str, token: str, *, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise AgentError(f'reach agent: expected http://HOST:PORT, got "{base_url}"')
        self._host, self._port = parts.hostname, parts.port or 10250
        self._token = token
        self._timeout = timeout

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        timestamps: bool = False,
        previous: bool = False,
    ) -> Iterator[bytes]:
        """A container's output in pieces; `since` in Unix seconds. Raises AgentError."""
        flags = {"follow": follow, "timestamps": timestamps, "previous": previous}
        query: dict[str, str] = {name: "1" for name, given in flags.items() if given}
        if tail is not None:
            query["tail"] = str(tail)
        if since is not None:
            query["since"] = str(since)
        path = f"{_path('logs', namespace, pod, container)}?{urlencode(query)}"
        connection, response = self._request("GET", path)
        if response.status != 200:
            raise self._refusal(connection, response)
        return self._pieces(connection, response, follow=follow)

    def exec(
        self,
        namespace: str,
        pod: str,
        container: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        stdin: bool = False,
    ) -> AgentExec:
        """Start a command in a container. Raises AgentError."""
        body = json.dumps({"command": list(command), "tty": tty, "stdin": stdin}).encode()
        headers = {"Upgrade": frames.UPGRADE, "Connection": "Upgrade", "Content-Type": "application/json"}
        connection, response = self._request("POST", _path("exec", namespace, pod, container), body, headers)
        if response.status != 101:
            raise self._refusal(connection, response)
        return AgentExec(connection, response)

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        given = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        try:
            connection.request(method, path, body, given)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise AgentError(f"reach agent {self._host}:{self._port}: {error}") from error

    def _refusal(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> AgentError:
        text = response.read(4096).decode("utf-8", "replace").strip()
        connection.close()
        return AgentError(text or f"agent {self._host}: HTTP status {response.status}", response.status)

    def _pieces(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, *, follow: bool
    ) -> Iterator[bytes]:
        if follow and connection.sock is not None:
            connection.sock.settimeout(None)
        try:
            while data := response.read1(_CHUNK):
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"read logs from agent {self._host}: {error}") from error
        finally:
            response.close()
            connection.close()


class AgentExec:
    """A running command. `output` may be read in one thread while another sends."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        # http.client has closed its own reference to the socket: the response holds what was read ahead
        self._source = cast(BinaryIO, response.fp)
        self._socket = _socket_of(connection, response)
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self._code: int | None = None
        self._error = "the connection to the agent broke"

    def output(self) -> Iterator[tuple[str, bytes]]:
        """("stdout" | "stderr", bytes) until the command has ended."""
        while True:
            try:
                frame = frames.read(self._source)
            except (OSError, ValueError):
                frame = None
            if frame is None:
                return
            channel, data = frame
            if channel == frames.RESULT:
                told = json.loads(data)
                self._code = told.get("exitCode")
                self._error = told.get("error", self._error)
                return
            yield ("stderr" if channel == frames.STDERR else "stdout"), data

    def send(self, data: bytes) -> None:
        """Input for the command. Raises AgentError when the session has ended."""
        for start in range(0, len(data), _CHUNK):
            self._send(frames.pack(frames.STDIN, data[start : start + _CHUNK]))

    def end_input(self) -> None:
        """The command sees the end of its input."""
        self._send(frames.pack(frames.END_INPUT))

    def resize(self, height: int, width: int) -> None:
        """Tell the command's terminal its size in characters."""
        self._send(frames.pack(frames.RESIZE, json.dumps({"height": height, "width": width}).encode()))

    def exit_code(self) -> int:
        """Of the command; call it after `output` ended. Raises AgentError when it is not known."""
        if self._code is None:
            raise AgentError(f"read exit code: {self._error}")
        return self._code

    def close(self) -> None:
        """End the session from any thread; the command sees its terminal or input close."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            self._connection.close()

    def _send(self, frame: bytes) -> None:
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError as error:
            raise AgentError(f"send to agent: {error.strerror or error}") from error


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _socket_of(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> socket.socket:
    """The connection's socket, which http.client lets go when an answer has no length."""
    found: socket.socket | None = connection.sock
    if found is None:
        raw = getattr(response.fp, "raw", None)
        found = getattr(raw, "_sock", None)
    if found is None:
        raise AgentError("start exec: the agent closed the connection")
    return found
